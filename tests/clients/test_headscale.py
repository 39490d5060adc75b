"""Headscale on every release: the real client and transport, on the simulator of each."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import combinations
from threading import Event

import pytest
import tenacity

from lifecycle.clients.headscale import errors as headscale_errors
from lifecycle.clients.headscale.http import HttpTransport
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.clients.http import Credential
from lifecycle.domain.errors import ApiError, AuthError, ConflictError, NotFoundError, ResponseError, TransientError
from lifecycle.domain.model import KeySpec, Node, PreAuthKey, RegisterMethod, User
from lifecycle.runtime.retry import RetryBudget, once, retrying
from tests.builders import NAME
from tests.simulators import faults
from tests.simulators.dialects import VERSIONS
from tests.simulators.faults import Fault
from tests.simulators.headscale import HeadscaleSimulator
from tests.world import Clock, json_client, named

SAYS_ITS_VERSION = [version for version in VERSIONS if version >= "0.27"]
HOUR = timedelta(hours=1)
# What is asked of a server to tell its version.
TELLING_THE_VERSION = r"^/(version|swagger|api/v1/openapi\.json|api/v1/preauthkey)"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=VERSIONS)
def server(request: pytest.FixtureRequest, clock: Clock) -> HeadscaleSimulator:
    """A server of each release, with two users."""
    return server_of(request.param, clock)


def server_of(
    version: str, clock: Clock, *, reported_version: str | None = None, api_key: str | None = None
) -> HeadscaleSimulator:
    server = HeadscaleSimulator(version, now=clock.now, reported_version=reported_version, api_key=api_key)
    server.add_user("ann")
    server.add_user("svc")
    return server


def client_of(
    server: HeadscaleSimulator, *, policy: tenacity.Retrying | None = None, api_key: str | None = None
) -> HeadscaleWriter:
    client = json_client(
        server.handle,
        upstream=headscale_errors.UPSTREAM,
        address="HEADSCALE_URL",
        base_url="http://headscale",
        credential=Credential(lambda: api_key or server.api_key, name="HEADSCALE_API_KEY"),
        explain=headscale_errors.explain,
    )
    return HeadscaleWriter(HttpTransport(client), policy or once())


def patient(clock: Clock) -> tenacity.Retrying:
    """The policy of `cleanup`, on a clock of our own."""
    return retrying(patience=RetryBudget(timedelta(minutes=2), clock=clock.monotonic), stop=Event(), sleep=clock.sleep)


@pytest.fixture
def headscale(server: HeadscaleSimulator, clock: Clock) -> HeadscaleWriter:
    return client_of(server, policy=patient(clock))


def the_user(headscale: HeadscaleWriter, name: str = "svc") -> User:
    [user] = [user for user in headscale.users() if user.name == name]
    return user


def a_key(headscale: HeadscaleWriter, clock: Clock, **spec: object) -> PreAuthKey:
    wanted = replace(KeySpec(the_user(headscale), HOUR), **spec)  # type: ignore[arg-type]
    return headscale.create_pre_auth_key(wanted, now=clock.now())


def usable(server: HeadscaleSimulator, clock: Clock) -> list[str]:
    return [key.key for key in server.keys if key.expires_at > clock.now()]


def paths(server: HeadscaleSimulator) -> list[str]:
    return [exchange.path for exchange in server.requests]


# --- Telling the version ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "told", "asked"),
    [
        pytest.param("0.23.0", "0.23 to 0.25", 2, id="0.23"),
        pytest.param("0.25.1", "0.23 to 0.25", 2, id="0.25"),
        pytest.param("0.26.1", "0.26 or 0.27", 2, id="0.26"),
        *(pytest.param(version, version, 1, id=version) for version in SAYS_ITS_VERSION),
    ],
)
def test_the_version_is_read_without_a_key_and_once(version: str, told: str, asked: int, clock: Clock) -> None:
    server = server_of(version, clock)
    headscale = client_of(server, api_key="wrong")
    assert [headscale.version(), headscale.version()] == [told, told]
    assert paths(server) == ["/version", "/swagger/v1/openapiv2.json"][:asked]


@pytest.mark.parametrize("reported", ["dev", "v0.0.0-20260721000000-f20f1f12abcd", "(devel)", "1.0.0", "v0.x"])
@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("0.27.1", "0.26 or 0.27"),
        ("0.28.0", "0.28 or 0.29"),
        ("0.29.2", "0.28 or 0.29"),
        ("0.30.0", "0.30 or newer"),
    ],
)
def test_a_build_of_ones_own_is_told_by_its_api(version: str, told: str, reported: str, clock: Clock) -> None:
    server = server_of(version, clock, reported_version=reported)
    headscale = client_of(server)
    assert headscale.version() == told
    key = a_key(headscale, clock)
    headscale.expire_pre_auth_key(key, the_user(headscale))
    assert usable(server, clock) == []


@pytest.mark.parametrize("reported", ["v0.30.0-beta.2", "0.31.4", "v0.28.0+dirty"])
def test_a_version_of_the_future_is_taken_at_its_word(reported: str, clock: Clock) -> None:
    assert client_of(server_of("0.30.0", clock, reported_version=reported)).version() == reported.removeprefix("v")


@pytest.mark.parametrize("reported", [None, "v0.22.3"])
def test_0_22_is_refused(reported: str | None, clock: Clock) -> None:
    server = HeadscaleSimulator("0.22.3", now=clock.now)
    if reported:
        server.faults.add(faults.answer(200, json.dumps({"version": reported})), path="^/version")
    headscale = client_of(server, policy=patient(clock))
    with pytest.raises(ResponseError, match=r"0\.22.* 0\.23"):
        headscale.version()
    assert server.writes == []
    assert clock.elapsed_s == 0, "no try mends it"


@pytest.mark.parametrize(
    ("fault", "kind", "told"),
    [
        pytest.param(faults.html(200), ResponseError, "HEADSCALE_URL", id="a-web-page"),
        pytest.param(faults.garbage(), ResponseError, "HEADSCALE_URL", id="garbage"),
        pytest.param(faults.answer(200, "[]"), ResponseError, "HEADSCALE_URL", id="another-api"),
        pytest.param(faults.html(404), TransientError, "HEADSCALE_URL", id="a-proxy-without-a-route"),
        pytest.param(faults.html(502), TransientError, "trouble", id="a-proxy-before-nobody"),
        pytest.param(faults.html(403), AuthError, "refused", id="an-allow-list"),
        pytest.param(faults.drop(), TransientError, "could not be reached", id="connection-lost"),
    ],
)
def test_what_is_no_headscale_is_told_from_one_that_is_down(
    fault: Fault, kind: type[ApiError], told: str, server: HeadscaleSimulator
) -> None:
    server.faults.add(fault, times=None)
    with pytest.raises(kind, match=told):
        client_of(server).version()


def test_a_version_that_could_not_be_read_is_asked_for_again(server: HeadscaleSimulator) -> None:
    headscale = client_of(server)
    server.faults.add(faults.html(502))
    with pytest.raises(TransientError):
        headscale.version()
    assert headscale.version()


def test_a_version_that_a_proxy_hides_is_told_by_the_api_itself(server: HeadscaleSimulator, clock: Clock) -> None:
    """As behind an Ingress that lets nothing through but what is below /api/v1."""
    server.faults.add(faults.html(404), path="^/(version|swagger)", times=None)
    headscale = client_of(server)
    key = a_key(headscale, clock)
    headscale.expire_pre_auth_key(key, the_user(headscale))
    assert usable(server, clock) == []


def test_a_version_that_was_told_wrong_is_asked_for_again(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    """Something before the server answered as a server of 0.28 might."""
    key = a_key(client_of(server), clock)
    server.faults.add(faults.answer(200, '{"preAuthKeys": []}'), path=TELLING_THE_VERSION, times=4)
    assert headscale.version() == "0.28 or newer"
    assert server.faults.pending == 0
    assert [listed.id for listed in headscale.pre_auth_keys(the_user(headscale))] == [key.id]
    headscale.expire_pre_auth_key(key, the_user(headscale))
    assert usable(server, clock) == []


# --- Users --------------------------------------------------------------------------------------------


def test_every_user_is_listed_with_id_and_name(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    assert headscale.users() == [User("1", "ann"), User("2", "svc")]


def test_a_user_of_a_provider_may_have_no_name(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_user("", "bob@example.com", provider="oidc")
    shown = "bob@example.com" if server.dialect.user_name_falls_back else ""
    assert headscale.users()[-1] == User("3", shown)


# --- Making keys --------------------------------------------------------------------------------------


def test_a_key_is_the_users_and_good_from_now_on(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    key = a_key(headscale, clock)
    [made] = server.keys
    assert key.secret.get_secret_value() == made.key
    assert (key.id, made.user_id, made.reusable, made.ephemeral, made.tags) == (str(made.id), 2, False, False, ())
    # Some seconds are added, by which two pods that start at once can tell their keys apart.
    assert HOUR <= made.expires_at - clock.now() < HOUR + timedelta(minutes=1)
    assert server.register(key=made.key, hostname=NAME).user_id == 2


def test_a_key_is_what_was_asked_for(server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock) -> None:
    tags = frozenset({"tag:web", "tag:prod"})
    key = a_key(headscale, clock, life=timedelta(days=3), reusable=True, ephemeral=True, tags=tags)
    [made] = server.keys
    assert (made.reusable, made.ephemeral, made.user_id, set(made.tags)) == (True, True, 2, set(tags))
    # 0.23 shows a key's tags in lists alone.
    assert (key.reusable, key.ephemeral, key.tags or tags) == (True, True, tags)
    assert made.expires_at - clock.now() >= timedelta(days=3)


def test_the_expiration_is_sent_in_whole_seconds_of_utc(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    clock.sleep(0.123456)
    a_key(headscale, clock)
    body = json.loads(server.writes[-1].body)
    assert body["expiration"].startswith("2026-03-01T13:0")
    assert body["expiration"].endswith("Z")
    assert "." not in body["expiration"]


def test_a_user_whose_name_is_a_number_is_not_mistaken_for_an_id(clock: Clock, server: HeadscaleSimulator) -> None:
    server.add_user("1")
    headscale = client_of(server)
    headscale.create_pre_auth_key(KeySpec(the_user(headscale, "1"), HOUR), now=clock.now())
    assert [key.user_id for key in server.keys] == [3]


def test_a_key_that_is_born_expired_is_refused(server: HeadscaleSimulator, clock: Clock) -> None:
    """The server's clock is a day ahead of ours."""
    headscale = client_of(server)
    user = the_user(headscale)
    with pytest.raises(ResponseError, match="clock"):
        headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now() - timedelta(days=1))


# --- Lost answers -------------------------------------------------------------------------------------

CREATE = ("POST", "/api/v1/preauthkey$")
LIST = ("GET", "/api/v1/preauthkey")
EXPIRE = ("POST", "/api/v1/preauthkey/expire")


def spoil(server: HeadscaleSimulator, request: tuple[str, str], fault: Fault, *, times: int | None = 1) -> None:
    """Let a request meet a fault."""
    method, path = request
    server.faults.add(fault, method=method, path=path, times=times)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.drop(committed=True), id="connection-lost-after-commit"),
        pytest.param(faults.hang(committed=True), id="no-answer-after-commit"),
        pytest.param(faults.truncate(), id="half-an-answer"),
        pytest.param(faults.drop(), id="connection-lost-before"),
        pytest.param(faults.refuse(), id="refused"),
        pytest.param(faults.html(502), id="a-proxy's-error"),
        pytest.param(faults.too_many_requests(1), id="throttled"),
    ],
)
@pytest.mark.parametrize("times", [1, 3])
def test_a_lost_answer_leaves_one_usable_key(
    fault: Fault, times: int, server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    spoil(server, CREATE, fault, times=times)
    key = a_key(headscale, clock)
    assert usable(server, clock) == [key.secret.get_secret_value()]


def test_the_key_that_was_hidden_is_named(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock, events: list[dict[str, object]]
) -> None:
    spoil(server, CREATE, faults.drop(committed=True))
    a_key(headscale, clock)
    assert [event["key_id"] for event in named(events, "pre_auth_key.expired")] == ["1"]


@pytest.mark.parametrize("trouble", [LIST, EXPIRE])
@pytest.mark.parametrize(
    "fault", [pytest.param(faults.html(502), id="502"), pytest.param(faults.drop(committed=True), id="lost")]
)
def test_a_lost_answer_is_followed_up_until_that_works(
    trouble: tuple[str, str], fault: Fault, server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    spoil(server, CREATE, faults.drop(committed=True))
    spoil(server, trouble, fault, times=2)
    key = a_key(headscale, clock)
    assert usable(server, clock) == [key.secret.get_secret_value()]


@pytest.mark.parametrize("later", [timedelta(minutes=5), timedelta(hours=3)], ids=["usable-still", "expired-by-then"])
def test_a_lost_answer_keeps_no_later_key_from_being_made(
    later: timedelta, server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    """After an outage the hidden key may have expired by itself, which some releases refuse to do again."""
    user = the_user(headscale)
    spoil(server, CREATE, faults.wrong_content_type(committed=True))
    with pytest.raises(ResponseError):
        headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now())
    clock.sleep(later.total_seconds())
    key = a_key(headscale, clock)
    assert usable(server, clock) == [key.secret.get_secret_value()]


@pytest.mark.parametrize("email", ["svc@example.com", "ann"])
def test_a_lost_answer_is_found_for_a_user_with_an_email(
    email: str, server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    """Releases 0.24 and 0.25 call a key's user by the email, where there is one."""
    user = server.add_user("web", email)
    spoil(server, CREATE, faults.drop(committed=True))
    spec = KeySpec(User(str(user.id), "web"), HOUR)
    key = headscale.create_pre_auth_key(spec, now=clock.now())
    assert usable(server, clock) == [key.secret.get_secret_value()]


def test_other_keys_stay_when_an_answer_was_lost(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    """Other users', other lives', used ones: none is taken for the hidden one."""
    kept = [
        server.create_key("ann", expires_in=HOUR),
        server.create_key("svc", expires_in=HOUR, reusable=True),
        server.create_key("svc", expires_in=2 * HOUR),
        server.create_key("svc", expires_in=HOUR - timedelta(seconds=1)),
    ]
    spoil(server, CREATE, faults.drop(committed=True))
    key = a_key(headscale, clock)
    assert usable(server, clock) == [*(key.key for key in kept), key.secret.get_secret_value()]


def test_a_create_that_stays_unanswered_is_told(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock, events: list[dict[str, object]]
) -> None:
    user = the_user(headscale)
    spoil(server, CREATE, faults.drop(), times=None)
    with pytest.raises(TransientError):
        headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now())
    assert clock.elapsed_s <= 120
    assert [event["user"] for event in named(events, "pre_auth_key.create_unconfirmed")] == ["svc"]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.html(200), id="html"),
        pytest.param(faults.garbage(), id="garbage"),
        pytest.param(faults.answer(200, "{}"), id="without-a-key"),
        pytest.param(faults.answer(400, '{"code": 3, "message": "no", "details": []}'), id="400"),
    ],
)
def test_a_create_that_is_answered_with_nonsense_is_not_sent_again(
    fault: Fault, server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    user = the_user(headscale)
    spoil(server, CREATE, fault)
    with pytest.raises(ResponseError):
        headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now())
    assert len(server.writes) == 1


def test_a_key_whose_answer_makes_no_sense_is_told_and_expired_by_the_next_call(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock, events: list[dict[str, object]]
) -> None:
    """The server made it: a proxy put a page of its own in place of the answer."""
    user = the_user(headscale)
    spoil(server, CREATE, faults.wrong_content_type(committed=True))
    with pytest.raises(ResponseError):
        headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now())
    assert len(usable(server, clock)) == 1
    assert [event["user"] for event in named(events, "pre_auth_key.create_unconfirmed")] == ["svc"]
    key = headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now())
    assert usable(server, clock) == [key.secret.get_secret_value()]


# --- Expiring keys ------------------------------------------------------------------------------------


def test_a_key_that_was_made_can_be_expired(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    other = server.create_key("svc")
    key = a_key(headscale, clock)
    headscale.expire_pre_auth_key(key, the_user(headscale))
    assert usable(server, clock) == [other.key]


@pytest.mark.parametrize("fault", [faults.drop(committed=True), faults.hang(committed=True), faults.html(502)])
def test_a_lost_answer_to_an_expiry_is_no_failure(
    fault: Fault, server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    key = a_key(headscale, clock)
    spoil(server, EXPIRE, fault)
    headscale.expire_pre_auth_key(key, the_user(headscale))
    assert usable(server, clock) == []
    assert clock.elapsed_s < 10


def test_a_key_that_was_used_meanwhile_can_be_expired(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    key = a_key(headscale, clock)
    server.register(key=key.secret.get_secret_value(), hostname=NAME)
    headscale.expire_pre_auth_key(key, the_user(headscale))
    assert clock.elapsed_s < 10


def test_a_key_that_is_gone_counts_as_expired(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    key = a_key(headscale, clock)
    server.delete_key(int(key.id))
    headscale.expire_pre_auth_key(key, the_user(headscale))
    assert clock.elapsed_s == 0


def test_a_users_keys_are_listed_and_nobody_elses(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    server.create_key("ann")
    mine = server.create_key("svc", reusable=True, tags=("tag:web",))
    server.register(key=server.create_key("svc").key, hostname=NAME)
    listed = headscale.pre_auth_keys(the_user(headscale))
    assert [(key.id, key.reusable, key.used) for key in listed] == [("2", True, False), ("3", False, True)]
    assert listed[0].expires_at == mine.expires_at
    assert [key.usable(clock.now()) for key in listed] == [True, False]


# --- Nodes --------------------------------------------------------------------------------------------


def test_every_node_is_read_whole(server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock) -> None:
    made = server.add_node(NAME, user="svc")
    server.add_node("phone", user="ann", registered_by="oidc", online=False, expires_at=clock.now() - HOUR)
    ours, phone = headscale.nodes()
    assert (ours.id, ours.hostname, ours.machine_key) == (str(made.id), NAME, made.machine_key)
    assert tuple(map(str, ours.addresses)) == made.addresses
    assert (ours.user, ours.tags, ours.online, ours.expires_at) == (User("2", "svc"), frozenset(), True, None)
    assert (ours.registered_by, ours.pre_auth_key and ours.pre_auth_key.id) == (RegisterMethod.AUTH_KEY, "1")
    assert (phone.registered_by, phone.pre_auth_key, phone.online) == (RegisterMethod.OIDC, None, False)
    assert (ours.expired(clock.now()), phone.expired(clock.now())) == (False, True)
    assert headscale.node(ours.id) == ours


def test_a_tagged_node_is_known_by_its_tags_and_its_key(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_node(NAME, user="svc", tags=("tag:web",))
    for node in (*headscale.nodes(), headscale.node("1")):
        assert node.tags == {"tag:web"}
        assert node.pre_auth_key is not None
        assert node.pre_auth_key.user is not None
        assert node.pre_auth_key.user.is_same(User("2", "svc"))
        # From 0.28 on, a list shows a user that is none.
        assert node.user in (User("2", "svc"), None)


def test_a_node_that_logged_out_has_expired(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    node = server.add_node(NAME, user="svc")
    server.logout(node.id)
    assert headscale.node("1").expired(clock.now())


@pytest.mark.parametrize("node_id", ["0", "", "-1", "1/expire", "../user", "\N{FULLWIDTH DIGIT ONE}"])
def test_an_id_that_is_none_is_never_sent(node_id: str, server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    """Up to 0.26, an id of 0 hits the first node there is."""
    server.add_node(NAME, user="svc")
    with pytest.raises(ValueError, match="positive whole number"):
        headscale.node(node_id)
    assert server.requests == []


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.html(200), id="html"),
        pytest.param(faults.garbage(), id="garbage"),
        pytest.param(faults.answer(200, "{}"), id="no-list"),
        pytest.param(faults.answer(200, '{"nodes": null}'), id="null"),
        pytest.param(faults.answer(200, '{"nodes": {}}'), id="object"),
        pytest.param(faults.answer(200, '{"nodes": [{"id": "1"}]}'), id="a-node-without-a-name"),
        pytest.param(faults.answer(200, '{"nodes": [null]}'), id="a-node-that-is-none"),
        pytest.param(faults.answer(200, '"nodes"'), id="text"),
        pytest.param(faults.answer(200, '{"nodes": []}', content_type="text/html"), id="json-as-html"),
    ],
)
def test_a_list_that_makes_no_sense_is_no_empty_list(
    fault: Fault, server: HeadscaleSimulator, headscale: HeadscaleWriter
) -> None:
    server.faults.add(fault, times=None)
    with pytest.raises(ResponseError, match="HEADSCALE_URL"):
        headscale.nodes()


# --- Not found, and not found out ---------------------------------------------------------------------


def test_headscales_own_word_that_there_is_no_such_node(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_node("laptop", user="ann")
    with pytest.raises(NotFoundError):
        headscale.node("7")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.html(404), id="html"),
        pytest.param(faults.answer(404), id="empty"),
        pytest.param(faults.answer(404, "404 page not found\n", content_type="text/plain"), id="text"),
        pytest.param(faults.answer(404, "{}"), id="json-of-somebody-else"),
        pytest.param(faults.answer(404, '{"error": "no route", "status": 404}'), id="json-with-a-status"),
        pytest.param(faults.answer(500, '{"code": 2, "message": "database is locked", "details": []}'), id="500"),
        pytest.param(faults.answer(500, "record not found", content_type="text/plain"), id="500-as-text"),
        pytest.param(faults.answer(503, '{"code": 14, "message": "peer not found"}'), id="503"),
    ],
)
def test_a_404_of_anybody_else_says_nothing_about_the_node(
    fault: Fault, server: HeadscaleSimulator, clock: Clock
) -> None:
    server.add_node(NAME, user="svc")
    server.faults.add(fault)
    with pytest.raises(TransientError):
        client_of(server).node("1")
    server.faults.add(fault, times=2)
    assert client_of(server, policy=patient(clock)).node("1").id == "1"


def test_a_wrong_key_is_told_from_an_unknown_node(server: HeadscaleSimulator, clock: Clock) -> None:
    """Up to 0.26 both are a 500."""
    headscale = client_of(server, policy=patient(clock), api_key="hskey-api-wrong")
    for ask in (headscale.nodes, lambda: headscale.node("7")):
        with pytest.raises(AuthError, match="headscale apikeys create"):
            ask()
    assert clock.elapsed_s == 0, "no try mends it"


def test_an_expired_key_is_refused_credentials(server: HeadscaleSimulator) -> None:
    headscale = client_of(server)
    server.revoke_api_key()
    with pytest.raises(AuthError):
        headscale.users()


def test_more_nodes_than_an_answer_holds_is_said_so(server: HeadscaleSimulator, clock: Clock) -> None:
    body = '{"code": 8, "message": "grpc: received message larger than max", "details": []}'
    server.faults.add(faults.answer(429, body), times=None)
    with pytest.raises(ResponseError, match="429"):
        client_of(server, policy=patient(clock)).nodes()
    assert clock.elapsed_s == 0


# --- Trying again -------------------------------------------------------------------------------------


def test_reads_are_tried_again(server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock) -> None:
    for fault in (faults.html(502), faults.drop(), faults.hang(), faults.too_many_requests(3)):
        server.faults.add(fault, path="/api/v1/node")
    assert headscale.nodes() == []
    assert clock.elapsed_s > 3


def test_it_is_given_up_after_two_minutes_in_all(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    server.faults.add(faults.html(503), times=None)
    with pytest.raises(TransientError):
        headscale.version()
    spent_s = clock.elapsed_s
    assert 90 < spent_s <= 120
    with pytest.raises(TransientError):
        headscale.users()
    assert clock.elapsed_s <= 120


# --- Deleting nodes -----------------------------------------------------------------------------------


def ours(_node: Node) -> bool:
    return True


def test_a_node_is_read_again_deleted_and_looked_for(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_node(NAME, user="svc")
    server.add_node("other", user="svc")
    [node, _] = headscale.nodes()
    seen = len(server.requests)
    headscale.delete_node(node, still_ours=ours)
    assert [exchange.method for exchange in server.requests[seen:]] == ["GET", "DELETE", "GET"]
    assert [left.name for left in server.nodes] == ["other"]


def test_a_node_that_is_gone_already_is_done(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_node("laptop", user="ann")
    server.add_node(NAME, user="svc")
    [_, node] = headscale.nodes()
    server.delete_node(2)
    headscale.delete_node(node, still_ours=ours)
    assert server.writes == []


@pytest.mark.parametrize("fault", [faults.drop(committed=True), faults.hang(committed=True), faults.html(502)])
def test_a_lost_answer_to_a_deletion_is_followed_up(
    fault: Fault, server: HeadscaleSimulator, headscale: HeadscaleWriter
) -> None:
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    server.faults.add(fault, method="DELETE")
    headscale.delete_node(node, still_ours=ours)
    assert server.nodes == []


def test_another_machine_under_the_same_id_stays(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    """Older databases hand the highest id out again."""
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    with pytest.raises(ConflictError, match="another machine"):
        headscale.delete_node(replace(node, machine_key="mkey:" + "0" * 64), still_ours=ours)
    assert server.writes == []


def test_a_node_that_is_no_longer_ours_stays(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    with pytest.raises(ConflictError, match="no longer ours"):
        headscale.delete_node(node, still_ours=lambda now: now != node)
    assert server.writes == []


def test_a_node_that_cannot_be_read_again_stays(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    server.faults.add(faults.html(404), path="/api/v1/node/", times=None)
    with pytest.raises(TransientError):
        headscale.delete_node(node, still_ours=ours)
    assert server.writes == []


def test_a_deletion_that_did_not_happen_is_told(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    server.faults.add(faults.answer(200, "{}"), method="DELETE")
    with pytest.raises(ResponseError, match="still has node 1"):
        headscale.delete_node(node, still_ours=ours)


# --- Upgraded under us --------------------------------------------------------------------------------

# As 0.25 to 0.27 make them. Those of 0.23 and 0.24 are longer, and refused from 0.28 on.
KEY_FOR_ALL = f"{'a' * 7}.{'b' * 32}"


def test_an_api_key_that_an_upgrade_made_useless_is_an_error_of_its_kind(clock: Clock) -> None:
    server = server_of("0.24.3", clock)
    headscale = client_of(server, policy=patient(clock))
    headscale.nodes()
    server.upgrade("0.28.0")
    with pytest.raises(AuthError, match="HEADSCALE_API_KEY"):
        headscale.nodes()


@pytest.mark.parametrize(
    ("old", "new"), [pytest.param(*pair, id="-to-".join(pair)) for pair in combinations(VERSIONS, 2)]
)
@pytest.mark.parametrize("noticed", [True, False], ids=["connection-lost", "between-two-requests"])
def test_an_upgrade_under_us_is_lived_with(old: str, new: str, noticed: bool, clock: Clock) -> None:
    """Also one that breaks no connection: what was known of the server is wrong without a sign."""
    server = server_of(old, clock, api_key=KEY_FOR_ALL)
    headscale = client_of(server, policy=patient(clock))
    user = the_user(headscale)
    before = a_key(headscale, clock)
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()

    server.upgrade(new)
    if noticed:
        server.faults.add(faults.drop())
    headscale.expire_pre_auth_key(before, user)
    spoil(server, CREATE, faults.drop(committed=True))
    after = headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now())
    node_key = [key.key for key in server.keys if key.used]
    assert [key for key in usable(server, clock) if key not in node_key] == [after.secret.get_secret_value()]
    assert [key.id for key in headscale.pre_auth_keys(user)] == [str(key.id) for key in server.keys]
    headscale.delete_node(node, still_ours=ours)
    with pytest.raises(NotFoundError):
        headscale.node(node.id)


@pytest.mark.parametrize(("old", "new"), [("0.25.1", "0.26.1"), ("0.23.0", "0.30.0"), ("0.29.2", "0.30.0")])
def test_a_create_right_after_an_upgrade_finds_the_new_form(old: str, new: str, clock: Clock) -> None:
    server = server_of(old, clock, api_key=KEY_FOR_ALL)
    headscale = client_of(server)
    user = the_user(headscale)
    headscale.version()
    server.upgrade(new)
    headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now())
    assert [key.user_id for key in server.keys] == [2]


# --- What shows ---------------------------------------------------------------------------------------


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that led to it, also what was hidden with `from None`."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_no_value_shows_a_secret(server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock) -> None:
    """Up to 0.27 lists of nodes carry whole pre-auth keys."""
    server.add_node(NAME, user="svc")
    key = a_key(headscale, clock)
    shown = repr([headscale, headscale.nodes(), headscale.node("1"), headscale.pre_auth_keys(the_user(headscale)), key])
    assert not [secret for secret in server.secrets() if secret in shown]


@pytest.mark.parametrize(
    ("field", "value"),
    [("id", ""), ("machineKey", None), ("name", 7), ("ipAddresses", ["nonsense"]), ("expiry", "tomorrow"), ("user", 5)],
)
def test_no_error_shows_a_secret(field: str, value: object, clock: Clock) -> None:
    server = server_of("0.27.1", clock)
    server.add_node(NAME, user="svc")
    headscale = client_of(server)
    headscale.nodes()
    payload = json.loads(server.requests[-1].response)
    assert any(secret in server.requests[-1].response.decode() for secret in server.secrets())
    payload["nodes"][0][field] = value
    server.faults.add(faults.answer(200, json.dumps(payload)), path="/api/v1/node")
    with pytest.raises(ResponseError) as raised:
        headscale.nodes()
    told = [text for link in chain(raised.value) for text in (str(link), repr(link), repr(vars(link)))]
    told += traceback.format_exception(raised.value)
    assert not [text for text in told for secret in server.secrets() if secret in text]


def test_no_secret_is_ever_in_an_address(server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock) -> None:
    spoil(server, CREATE, faults.drop(committed=True))
    key = a_key(headscale, clock)
    headscale.expire_pre_auth_key(key, the_user(headscale))
    asked = " ".join(f"{exchange.path}?{exchange.query}" for exchange in server.requests)
    assert not [secret for secret in server.secrets() if secret in asked]
