"""Test which nodes and records the program may change ("ours"), and which Headscale user owns our nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.domain.errors import UserError
from lifecycle.domain.model import Node, Record, RegisterMethod, User
from lifecycle.domain.ownership import NodeOwnership, RecordOwnership, choose_user, mark_of
from tests.builders import (
    ANN,
    COMMENT_OF_OTHER_OWNER,
    NAME,
    NODE_OWNERSHIP,
    OUR_COMMENT,
    OUR_USER,
    RECORD_OWNERSHIP,
    VPN_PREFIXES,
    a_node,
    a_record,
    addresses,
)

OUR_TAGS = ["tag:svc"]
PUBLIC_ADDRESS = "203.0.113.7"
VPN_IPV6_ADDRESS = "fd7a:115c:a1e0::1"

# The last one is a name that Headscale assigns instead of an invalid hostname.
OTHER_HOSTNAMES = (
    *(f"{NAME}.evil", f"x-{NAME}", f"{NAME}-1", f"{NAME}.", f" {NAME}", "grafana", "grafana-example-com"),
    *("grafanaxexample.com", "", "invalid-abcd1234"),
)
OTHER_NAMES = (f"www.{NAME}", "example.com", f"x{NAME}", "*.example.com", "")
OTHER_COMMENTS = (
    *(OUR_COMMENT.upper(), OUR_COMMENT.capitalize(), f"{OUR_COMMENT} ", f"{OUR_COMMENT}2", f"x {OUR_COMMENT}", " "),
    *("managed by terraform", COMMENT_OF_OTHER_OWNER, "tailscale-lifecycle/2 default"),
)


@pytest.mark.parametrize(
    "node",
    [
        pytest.param(a_node(), id="our-user's-with-our-user's-key"),
        pytest.param(a_node(hostname=NAME.upper()), id="upper-case"),
        pytest.param(a_node(hostname="Grafana.Example.com"), id="mixed-case"),
        pytest.param(a_node(online=False), id="offline"),
        pytest.param(a_node(addresses=()), id="without-an-address"),
        pytest.param(a_node(user=User("1", "renamed")), id="our-user-with-a-new-name"),
        pytest.param(a_node(user=User(None, "svc")), id="our-user-without-an-id"),
        pytest.param(a_node(key_user=ANN), id="our-user's-with-another-user's-key"),
        pytest.param(a_node(key_user=None), id="our-user's-with-a-key-that-has-only-tags"),
        pytest.param(a_node(user=None, tags=["tag:other"]), id="tagged-and-registered-with-our-user's-key"),
        pytest.param(
            a_node(user=None, key_user=User(None, "svc")), id="tagged-and-registered-with-our-user's-key-by-name"
        ),
        pytest.param(a_node(user=None, key_user=None, tags=OUR_TAGS), id="no-user-and-our-tag"),
        pytest.param(
            a_node(user=None, key_user=None, tags=[*OUR_TAGS, "tag:other"]), id="no-user-and-our-tag-among-others"
        ),
        # From Headscale 0.28 on, the API returns such a node without a key.
        pytest.param(replace(a_node(user=None, tags=OUR_TAGS), pre_auth_key=None), id="tagged-and-its-key-was-deleted"),
    ],
)
def test_node_that_meets_all_criteria_is_ours(node: Node) -> None:
    """Such a node has our hostname and was registered with a pre-auth key. Its owner is our user, or it has our tag.

    The owner is the node's user. For a node without a user, it is the user of its key.
    """
    assert NODE_OWNERSHIP.is_owned(node)


@pytest.mark.parametrize(
    "node",
    [
        *(pytest.param(a_node(hostname=hostname), id=f"hostname {hostname}") for hostname in OTHER_HOSTNAMES),
        pytest.param(a_node(user=ANN), id="another-user's-with-our-key"),
        pytest.param(a_node(user=ANN, key_user=ANN), id="another-user's"),
        pytest.param(a_node(user=User("2", "svc")), id="another-user-of-our-name"),
        pytest.param(a_node(user=User(None, "ann")), id="another-user's-by-name"),
        pytest.param(a_node(user=ANN, tags=OUR_TAGS), id="another-user's-with-our-tag"),
        pytest.param(a_node(user=None, key_user=ANN), id="tagged-and-registered-with-another-user's-key"),
        pytest.param(a_node(user=None, key_user=ANN, tags=OUR_TAGS), id="another-user's-key-with-our-tag"),
        pytest.param(a_node(user=None, key_user=None), id="no-user"),
        pytest.param(a_node(user=None, key_user=None, tags=["tag:other"]), id="no-user-and-another-tag"),
        pytest.param(a_node(user=None, key_user=None, tags=["tag:svc2"]), id="no-user-and-a-longer-tag"),
        pytest.param(a_node(user=None, key_user=None, tags=["TAG:SVC"]), id="no-user-and-our-tag-in-upper-case"),
        pytest.param(a_node(registered_by=RegisterMethod.CLI), id="registered-by-CLI"),
        pytest.param(a_node(registered_by=RegisterMethod.OIDC), id="registered-by-OIDC"),
        pytest.param(a_node(registered_by=RegisterMethod.UNKNOWN), id="unknown-register-method"),
        pytest.param(
            a_node(registered_by=RegisterMethod.CLI, user=None, tags=OUR_TAGS), id="our-tag-registered-by-CLI"
        ),
    ],
)
def test_node_that_misses_a_criterion_is_not_ours(node: Node) -> None:
    assert not NODE_OWNERSHIP.is_owned(node)


def test_tags_count_only_if_our_keys_have_tags() -> None:
    without_tags = NodeOwnership(NAME, OUR_USER)

    assert not without_tags.is_owned(a_node(user=None, key_user=None, tags=OUR_TAGS))
    assert not without_tags.is_owned(a_node(user=None, key_user=None))


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(a_record(), id="our-comment"),
        pytest.param(a_record(content=PUBLIC_ADDRESS), id="our-comment-outside-the-VPN"),
        pytest.param(a_record(proxied=True, ttl_s=1), id="our-comment-proxied"),
        pytest.param(a_record(type_="AAAA", content=VPN_IPV6_ADDRESS), id="our-comment-on-an-AAAA"),
        pytest.param(a_record(comment=""), id="no-comment"),
        pytest.param(a_record(comment="", type_="AAAA", content=VPN_IPV6_ADDRESS), id="no-comment-AAAA"),
        pytest.param(a_record(comment="", content="100.64.0.0"), id="no-comment-first-VPN-address"),
        pytest.param(a_record(comment="", content="100.127.255.255"), id="no-comment-last-VPN-address"),
    ],
)
def test_record_with_our_comment_or_with_a_vpn_address_and_no_comment_is_ours(record: Record) -> None:
    """Before this program existed, a script may have created records without a comment."""
    assert RECORD_OWNERSHIP.is_owned(record)


@pytest.mark.parametrize(
    "record",
    [
        *(pytest.param(a_record(comment=comment), id=f"comment {comment}") for comment in OTHER_COMMENTS),
        *(pytest.param(a_record(name=name), id=f"name {name}") for name in OTHER_NAMES),
        *(
            pytest.param(a_record(comment="", content=content), id=f"no comment and {content}")
            for content in (PUBLIC_ADDRESS, "100.63.255.255", "100.128.0.0", "not an address", "")
        ),
        pytest.param(a_record(comment="", type_="AAAA", content="2001:db8::1"), id="no-comment-AAAA-outside"),
        pytest.param(a_record(type_="CNAME", content="elsewhere.example.com"), id="our-comment-on-a-CNAME"),
        pytest.param(a_record(type_="TXT", content="100.64.0.1"), id="our-comment-on-a-TXT"),
        pytest.param(a_record(type_="TXT", content="100.64.0.1", comment=""), id="no-comment-TXT"),
        pytest.param(a_record(type_="HTTPS", content="1 ."), id="our-comment-on-an-HTTPS"),
    ],
)
def test_other_record_is_not_ours(record: Record) -> None:
    assert not RECORD_OWNERSHIP.is_owned(record)


@pytest.mark.parametrize(
    ("record", "is_marked", "has_another_mark"),
    [
        pytest.param(a_record(), True, False, id="ours"),
        pytest.param(a_record(comment=""), False, False, id="no-comment"),
        pytest.param(a_record(comment=COMMENT_OF_OTHER_OWNER), False, True, id="another-owner's"),
        pytest.param(a_record(comment="tailscale-lifecycle/2 default"), False, True, id="comment-of-a-later-version"),
        pytest.param(a_record(comment=f"{OUR_COMMENT} "), False, True, id="our-comment-and-a-blank"),
        pytest.param(
            a_record(comment=COMMENT_OF_OTHER_OWNER, type_="AAAA", content=VPN_IPV6_ADDRESS),
            False,
            True,
            id="another-owner's-AAAA",
        ),
        pytest.param(
            a_record(comment=COMMENT_OF_OTHER_OWNER, type_="TXT", content="x"), False, False, id="another-type"
        ),
        pytest.param(a_record(comment=COMMENT_OF_OTHER_OWNER, name=f"x{NAME}"), False, False, id="another-name"),
        pytest.param(
            a_record(comment=f"see {COMMENT_OF_OTHER_OWNER}"), False, False, id="text-before-another-owner's-comment"
        ),
        pytest.param(a_record(comment="managed by terraform"), False, False, id="foreign"),
    ],
)
def test_comment_is_ours_or_another_owners_or_neither(record: Record, is_marked: bool, has_another_mark: bool) -> None:
    assert RECORD_OWNERSHIP.is_marked(record) is is_marked
    assert RECORD_OWNERSHIP.has_another_mark(record) is has_another_mark


def test_comment_does_not_change_between_releases() -> None:
    """With another comment, the records of earlier releases would no longer be ours."""
    assert mark_of("default") == "tailscale-lifecycle/1 default"


def test_vpn_addresses_are_returned_in_the_given_order() -> None:
    all_addresses = addresses(VPN_IPV6_ADDRESS, "192.0.2.1", "100.64.0.2", "::1", "100.64.0.1", "fe80::1")
    ipv4_only = RecordOwnership(NAME, OUR_COMMENT, VPN_PREFIXES[:1])

    assert RECORD_OWNERSHIP.vpn_addresses(all_addresses) == addresses(VPN_IPV6_ADDRESS, "100.64.0.2", "100.64.0.1")
    assert ipv4_only.vpn_addresses(all_addresses) == addresses("100.64.0.2", "100.64.0.1")


LOCAL = User("1", "svc")
FROM_OIDC = User("5", "svc", email="svc@example.com", provider="oidc")
NAMED_LIKE_AN_EMAIL = User("6", "ann@example.com")
WITH_THE_SAME_EMAIL = User("7", "ann", email="ann@example.com")


class TestChooseUser:
    """The choice of the Headscale user that owns our nodes."""

    def test_configured_name_is_chosen(self) -> None:
        assert choose_user([ANN, OUR_USER], "svc") == OUR_USER
        assert choose_user([OUR_USER, ANN], "ann") == ANN

    def test_only_user_is_chosen_by_default(self) -> None:
        assert choose_user([ANN], None) == ANN

    @pytest.mark.parametrize(
        ("selector", "chosen"),
        [
            pytest.param("id:1", LOCAL, id="id"),
            pytest.param("id:5", FROM_OIDC, id="another-id"),
            pytest.param("svc@example.com", FROM_OIDC, id="e-mail"),
            pytest.param("SVC@Example.com", FROM_OIDC, id="e-mail-in-another-case"),
            pytest.param("ann@example.com", NAMED_LIKE_AN_EMAIL, id="name-before-e-mail"),
        ],
    )
    def test_user_can_be_chosen_by_id_or_email(self, selector: str, chosen: User) -> None:
        users = [LOCAL, FROM_OIDC, NAMED_LIKE_AN_EMAIL, WITH_THE_SAME_EMAIL]
        assert choose_user(users, selector) == chosen
        assert choose_user(users[::-1], selector) == chosen

    def test_users_with_the_same_name_are_listed_with_id_email_and_provider(self) -> None:
        with pytest.raises(UserError) as raised:
            choose_user([LOCAL, FROM_OIDC], "svc")

        for word in ("id:1", "id:5", "svc@example.com", "oidc", "HEADSCALE_USER"):
            assert word in str(raised.value)

    @pytest.mark.parametrize("selector", ["id:", "id:9", "id:01", "id:svc", "", "@", "example.com"])
    def test_unknown_selector_is_an_error(self, selector: str) -> None:
        with pytest.raises(UserError, match="HEADSCALE_USER"):
            choose_user([LOCAL, FROM_OIDC, User(None, "bob")], selector)

    @pytest.mark.parametrize(
        ("users", "selector", "words"),
        [
            pytest.param([], None, ["headscale users create"], id="no-users"),
            pytest.param([], "svc", ["headscale users create svc"], id="no-users-and-a-name"),
            # An id is not a name, so the advice contains the user's name in README.md.
            pytest.param([], "id:3", ["headscale users create services"], id="no-users-and-an-id"),
            pytest.param([OUR_USER, ANN], None, ["ann", "svc", "HEADSCALE_USER"], id="several-users-and-no-name"),
            pytest.param([OUR_USER, ANN], "bob", ["bob", "ann", "svc", "HEADSCALE_USER"], id="unknown-name"),
            pytest.param([OUR_USER], "ann", ["ann", "svc", "HEADSCALE_USER"], id="other-than-the-only-user"),
            pytest.param([OUR_USER], "SVC", ["SVC", "svc", "HEADSCALE_USER"], id="other-case"),
            pytest.param([OUR_USER], "sv", ["sv", "HEADSCALE_USER"], id="shorter-name"),
            pytest.param(
                [OUR_USER, User("3", "svc")], None, ["HEADSCALE_USER"], id="two-users-of-one-name-and-no-selector"
            ),
        ],
    )
    def test_unknown_or_ambiguous_user_is_an_error_with_advice(
        self, users: list[User], selector: str | None, words: list[str]
    ) -> None:
        with pytest.raises(UserError) as raised:
            choose_user(users, selector)

        for word in words:
            assert word in str(raised.value)

    @given(
        st.permutations([OUR_USER, ANN, User("3", "bob"), User("4", "")]), st.sampled_from(["svc", "ann", "eve", None])
    )
    def test_order_of_users_does_not_matter(self, users: list[User], selector: str | None) -> None:
        def user_or_error(ordered: list[User]) -> str:
            try:
                return str(choose_user(ordered, selector))
            except UserError as error:
                return str(error)

        assert user_or_error(users) == user_or_error(sorted(users, key=lambda user: user.name))
