"""What is ours, and what only looks like it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.domain.errors import UserError
from lifecycle.domain.model import KeyOrigin, Node, Record, RegisterMethod, User
from lifecycle.domain.ownership import NodeIdentity, RecordIdentity, choose_user, mark_of
from tests.builders import (
    ANN,
    MARK,
    NAME,
    NODE_IDENTITY,
    OTHER_MARK,
    RECORD_IDENTITY,
    SVC,
    VPN_PREFIXES,
    a_node,
    a_record,
    addresses,
)

TAG = ["tag:svc"]
OUTSIDE = "203.0.113.7"
VPN6 = "fd7a:115c:a1e0::1"


@pytest.mark.parametrize(
    "node",
    [
        pytest.param(a_node(), id="our-user's-with-our-user's-key"),
        pytest.param(a_node(hostname=NAME.upper()), id="upper-case"),
        pytest.param(a_node(hostname="Grafana.Example.com"), id="mixed-case"),
        pytest.param(a_node(online=False), id="offline"),
        pytest.param(a_node(addresses=()), id="without-an-address"),
        pytest.param(a_node(user=User("1", "renamed")), id="our-user-by-id-renamed-since"),
        pytest.param(a_node(user=User(None, "svc")), id="our-user-by-name-where-there-is-no-id"),
        pytest.param(a_node(key_user=ANN), id="ours-by-now-though-it-came-with-another's-key"),
        pytest.param(a_node(key_user=None), id="ours-with-a-key-of-tags-alone"),
        pytest.param(a_node(user=None, tags=["tag:other"]), id="tagged-with-our-user's-key"),
        pytest.param(a_node(user=None, key_user=User(None, "svc")), id="tagged-with-our-user's-key-by-name"),
        pytest.param(a_node(user=None, key_user=None, tags=TAG), id="nobody-named-and-our-tag"),
        pytest.param(a_node(user=None, key_user=None, tags=[*TAG, "tag:other"]), id="nobody-named-and-our-tag-of-two"),
    ],
)
def test_our_node(node: Node) -> None:
    """Our hostname, an auth key, and our user or, where nobody is named, our tag."""
    assert NODE_IDENTITY.owns_node(node)


@pytest.mark.parametrize(
    "node",
    [
        pytest.param(a_node(hostname=f"{NAME}.evil"), id="longer-hostname"),
        pytest.param(a_node(hostname=f"x-{NAME}"), id="prefixed-hostname"),
        pytest.param(a_node(hostname=f"{NAME}-1"), id="suffixed-hostname"),
        pytest.param(a_node(hostname="grafana"), id="first-label-alone"),
        pytest.param(a_node(hostname="grafana-example-com"), id="the-given-name-of-ours"),
        pytest.param(a_node(hostname=f"{NAME}."), id="trailing-dot"),
        pytest.param(a_node(hostname=f" {NAME}"), id="leading-blank"),
        pytest.param(a_node(hostname="grafanaxexample.com"), id="a-dot-is-a-dot"),
        pytest.param(a_node(hostname=""), id="no-hostname"),
        pytest.param(a_node(hostname="invalid-abcd1234"), id="a-name-Headscale-made-up"),
        pytest.param(a_node(user=ANN), id="another-user's-with-our-key"),
        pytest.param(a_node(user=ANN, key_user=ANN), id="another-user's"),
        pytest.param(a_node(user=User("2", "svc")), id="another-user-who-took-our-name"),
        pytest.param(a_node(user=User(None, "ann")), id="another-user's-by-name"),
        pytest.param(a_node(user=ANN, tags=TAG), id="another-user's-with-our-tag"),
        pytest.param(a_node(user=None, key_user=ANN), id="tagged-with-another-user's-key"),
        pytest.param(a_node(user=None, key_user=ANN, tags=TAG), id="another-user's-key-with-our-tag"),
        pytest.param(a_node(user=None, key_user=None), id="nobody's"),
        pytest.param(a_node(user=None, key_user=None, tags=["tag:other"]), id="nobody's-with-another-tag"),
        pytest.param(a_node(user=None, key_user=None, tags=["tag:svc2"]), id="nobody's-with-a-longer-tag"),
        pytest.param(a_node(user=None, key_user=None, tags=["TAG:SVC"]), id="nobody's-with-our-tag-in-upper-case"),
        pytest.param(a_node(registered_by=RegisterMethod.CLI), id="registered-by-CLI"),
        pytest.param(a_node(registered_by=RegisterMethod.OIDC), id="a-person's-machine"),
        pytest.param(a_node(registered_by=RegisterMethod.UNKNOWN), id="registered-in-a-way-unknown-here"),
        pytest.param(a_node(registered_by=RegisterMethod.CLI, user=None, tags=TAG), id="our-tag-by-CLI"),
    ],
)
def test_foreign_node(node: Node) -> None:
    """A node that is not ours is none of our business, whatever it calls itself."""
    assert not NODE_IDENTITY.owns_node(node)


def test_tags_count_only_where_we_give_any() -> None:
    """Without tags of our own, a node of nobody is nobody's."""
    untagged = NodeIdentity(NAME, SVC)

    assert not untagged.owns_node(a_node(user=None, key_user=None, tags=TAG))
    assert not untagged.owns_node(a_node(user=None, key_user=None))


def test_a_key_that_was_deleted_leaves_the_tag() -> None:
    """From 0.28 on a node forgets its key when that is deleted: what is left is the tag."""
    node = a_node(user=None, tags=TAG)
    forgotten = replace(node, pre_auth_key=None)

    assert NODE_IDENTITY.owns_node(forgotten)


@pytest.mark.parametrize(
    ("node", "bears"),
    [
        pytest.param(a_node(user=ANN, hostname=NAME.upper()), True, id="another-user's-node"),
        pytest.param(a_node(registered_by=RegisterMethod.OIDC), True, id="a-person's-machine"),
        pytest.param(a_node(hostname=f"{NAME}.evil"), False, id="longer"),
    ],
)
def test_bears_our_name(node: Node, bears: bool) -> None:
    """The name is told apart from the ownership: a foreign node of our name is worth a warning."""
    assert NODE_IDENTITY.bears_our_name(node) is bears


USERS = st.one_of(st.none(), st.builds(User, st.sampled_from([None, "1", "2"]), st.sampled_from(["svc", "ann"])))


@given(
    user=USERS,
    key=st.one_of(st.none(), st.builds(KeyOrigin, st.sampled_from(["7", "8"]), USERS)),
    tags=st.frozensets(st.sampled_from(["tag:svc", "tag:other"])),
    hostname=st.sampled_from([NAME, NAME.upper(), "grafana", f"{NAME}x"]),
    registered_by=st.sampled_from(RegisterMethod),
)
def test_owned_means_all_of_it(
    user: User | None,
    key: KeyOrigin | None,
    tags: frozenset[str],
    hostname: str,
    registered_by: RegisterMethod,
) -> None:
    """Whatever a node looks like, it is ours only with our name, an auth key, and nobody else named before us."""
    node = replace(a_node(hostname=hostname, user=user, tags=tags, registered_by=registered_by), pre_auth_key=key)

    if NODE_IDENTITY.owns_node(node):
        assert hostname.lower() == NAME
        assert registered_by is RegisterMethod.AUTH_KEY
        named = user or (key.user if key else None)
        assert named.is_same(SVC) if named else "tag:svc" in tags


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(a_record(), id="our-mark"),
        pytest.param(a_record(content=OUTSIDE), id="our-mark-on-an-address-outside"),
        pytest.param(a_record(proxied=True, ttl_s=1), id="our-mark-however-it-is-set"),
        pytest.param(a_record(type_="AAAA", content=VPN6), id="our-mark-on-an-AAAA"),
        pytest.param(a_record(comment=""), id="an-older-script's"),
        pytest.param(a_record(comment="", type_="AAAA", content=VPN6), id="an-older-script's-AAAA"),
        pytest.param(a_record(comment="", content="100.64.0.0"), id="first-VPN-address"),
        pytest.param(a_record(comment="", content="100.127.255.255"), id="last-VPN-address"),
    ],
)
def test_our_record(record: Record) -> None:
    """The exact name, an address, and our mark or nobody's mark on a VPN address."""
    assert RECORD_IDENTITY.owns_record(record)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(a_record(comment="managed by terraform"), id="foreign-comment"),
        pytest.param(a_record(comment=OTHER_MARK), id="another-owner's-mark"),
        pytest.param(a_record(comment=MARK.upper()), id="our-mark-in-upper-case"),
        pytest.param(a_record(comment=MARK.capitalize()), id="our-mark-capitalised"),
        pytest.param(a_record(comment=f"{MARK} "), id="our-mark-and-a-blank"),
        pytest.param(a_record(comment=f"{MARK}2"), id="our-mark-and-more"),
        pytest.param(a_record(comment=f"x {MARK}"), id="our-mark-behind-something"),
        pytest.param(a_record(comment="tailscale-lifecycle/2 default"), id="our-mark-of-another-version"),
        pytest.param(a_record(comment=" "), id="a-blank-is-a-comment"),
        pytest.param(a_record(comment="", content=OUTSIDE), id="unmarked-outside-the-VPN"),
        pytest.param(a_record(comment="", content="100.63.255.255"), id="unmarked-just-below-the-VPN"),
        pytest.param(a_record(comment="", content="100.128.0.0"), id="unmarked-just-above-the-VPN"),
        pytest.param(a_record(comment="", type_="AAAA", content="2001:db8::1"), id="unmarked-AAAA-outside"),
        pytest.param(a_record(comment="", content="not an address"), id="unmarked-nonsense"),
        pytest.param(a_record(comment="", content=""), id="unmarked-and-empty"),
        pytest.param(a_record(name=f"www.{NAME}"), id="name-below"),
        pytest.param(a_record(name="example.com"), id="name-above"),
        pytest.param(a_record(name=f"x{NAME}"), id="longer-name"),
        pytest.param(a_record(name="*.example.com"), id="wildcard"),
        pytest.param(a_record(name=""), id="no-name"),
        pytest.param(a_record(type_="CNAME", content="elsewhere.example.com"), id="our-mark-on-a-CNAME"),
        pytest.param(a_record(type_="TXT", content="100.64.0.1"), id="our-mark-on-a-TXT"),
        pytest.param(a_record(type_="TXT", content="100.64.0.1", comment=""), id="unmarked-TXT"),
        pytest.param(a_record(type_="HTTPS", content="1 ."), id="our-mark-on-an-HTTPS"),
    ],
)
def test_foreign_record(record: Record) -> None:
    """A record that is not ours is never touched; its comment is compared exactly."""
    assert not RECORD_IDENTITY.owns_record(record)


@given(comment=st.text(max_size=40), content=st.sampled_from(["100.64.0.1", OUTSIDE]))
def test_any_other_comment_makes_it_somebody_elses(comment: str, content: str) -> None:
    owned = RECORD_IDENTITY.owns_record(a_record(comment=comment, content=content))

    assert owned is (comment == MARK or (comment == "" and content == "100.64.0.1"))


@pytest.mark.parametrize(
    ("record", "marked", "taken"),
    [
        pytest.param(a_record(), True, False, id="ours"),
        pytest.param(a_record(comment=""), False, False, id="an-older-script's"),
        pytest.param(a_record(comment=OTHER_MARK), False, True, id="another-owner's"),
        pytest.param(a_record(comment="tailscale-lifecycle/2 default"), False, True, id="a-later-version's"),
        pytest.param(a_record(comment=OTHER_MARK, type_="AAAA", content=VPN6), False, True, id="another-owner's-AAAA"),
        pytest.param(a_record(comment=OTHER_MARK, type_="TXT", content="x"), False, False, id="another-type"),
        pytest.param(a_record(comment=OTHER_MARK, name=f"x{NAME}"), False, False, id="another-name"),
        pytest.param(a_record(comment=f"see {OTHER_MARK}"), False, False, id="a-comment-about-a-mark"),
        pytest.param(a_record(comment="managed by terraform"), False, False, id="foreign"),
    ],
)
def test_marks(record: Record, marked: bool, taken: bool) -> None:
    """A mark is ours, another owner's, or no mark."""
    assert RECORD_IDENTITY.is_marked(record) is marked
    assert RECORD_IDENTITY.marked_by_another(record) is taken


def test_the_mark_is_spelt_as_it_always_was() -> None:
    """Records that stand at Cloudflare today are known by these very letters."""
    assert mark_of("default") == "tailscale-lifecycle/1 default"


def test_vpn_addresses_keep_their_order_and_family() -> None:
    given_addresses = addresses(VPN6, "192.0.2.1", "100.64.0.2", "::1", "100.64.0.1", "fe80::1")

    assert RECORD_IDENTITY.vpn_addresses(given_addresses) == addresses(VPN6, "100.64.0.2", "100.64.0.1")
    assert RecordIdentity(NAME, MARK, VPN_PREFIXES[:1]).vpn_addresses(given_addresses) == addresses(
        "100.64.0.2", "100.64.0.1"
    )


class TestChooseUser:
    """Which of Headscale's users is ours."""

    def test_the_one_that_is_named(self) -> None:
        assert choose_user([ANN, SVC], "svc") == SVC
        assert choose_user([SVC, ANN], "ann") == ANN

    def test_the_only_one_when_none_is_named(self) -> None:
        assert choose_user([ANN], None) == ANN

    @pytest.mark.parametrize(
        ("users", "name", "says"),
        [
            pytest.param([], None, ["headscale users create"], id="no-user-at-all"),
            pytest.param([], "svc", ["headscale users create"], id="no-user-at-all-and-one-named"),
            pytest.param([SVC, ANN], None, ["ann, svc", "HEADSCALE_USER"], id="several-and-none-named"),
            pytest.param([SVC, ANN], "bob", ["bob", "ann, svc", "HEADSCALE_USER"], id="no-such-user"),
            pytest.param([SVC], "ann", ["ann", "svc", "HEADSCALE_USER"], id="the-only-one-is-not-the-one"),
            pytest.param([SVC], "SVC", ["SVC", "svc", "HEADSCALE_USER"], id="other-case"),
            pytest.param([SVC], "sv", ["sv", "HEADSCALE_USER"], id="shorter"),
            pytest.param([SVC, User("3", "svc")], "svc", ["2 users", "rename"], id="two-of-that-name"),
            pytest.param([SVC, User("3", "svc")], None, ["HEADSCALE_USER"], id="two-of-one-name-and-none-named"),
        ],
    )
    def test_a_doubt_is_an_error_that_says_what_to_do(
        self, users: list[User], name: str | None, says: list[str]
    ) -> None:
        with pytest.raises(UserError) as raised:
            choose_user(users, name)

        for part in says:
            assert part in str(raised.value)

    @given(st.permutations([SVC, ANN, User("3", "bob"), User("4", "")]), st.sampled_from(["svc", "ann", "eve", None]))
    def test_the_order_of_the_list_decides_nothing(self, users: list[User], name: str | None) -> None:
        def outcome(some: list[User]) -> str:
            try:
                return str(choose_user(some, name))
            except UserError as error:
                return str(error)

        assert outcome(users) == outcome(sorted(users, key=lambda user: user.name))
