"""Tests of the client of Headscale's REST API, with a simulator of each release."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import combinations, cycle

import pytest
import tenacity

from lifecycle.clients.headscale.errors import HEADSCALE
from lifecycle.clients.headscale.http import HttpTransport
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.domain.errors import ApiError, AuthError, ConflictError, NotFoundError, ResponseError, TransientError
from lifecycle.domain.model import KeySpec, Node, PreAuthKey, RegisterMethod, User
from lifecycle.runtime.retry import RetryPolicy, no_retries
from tests.builders import NAME
from tests.simulators import faults
from tests.simulators.dialects import VERSIONS
from tests.simulators.faults import Fault
from tests.simulators.headscale import HeadscaleSimulator
from tests.world import Clock, StopAt, events_named, json_client

VERSIONS_WITH_A_VERSION_ENDPOINT = [version for version in VERSIONS if version >= "0.27"]
HOUR = timedelta(hours=1)
# How much a clock differs from the true time.
SKEWS = [timedelta(days=400), timedelta(hours=3), timedelta(hours=-1), timedelta(days=-1)]
# The paths of the four requests that detect the version. Each is sent only if those before it did not show the version.
DETECTION = r"^/(version|swagger|api/v1/openapi\.json|api/v1/preauthkey)"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=VERSIONS)
def server(request: pytest.FixtureRequest, clock: Clock) -> HeadscaleSimulator:
    """A simulated server of each release, with two users."""
    return server_of(request.param, clock)


def server_of(
    version: str, clock: Clock, *, reported_version: str | None = None, api_key: str | None = None
) -> HeadscaleSimulator:
    server = HeadscaleSimulator(version, now=clock.true_now, reported_version=reported_version, api_key=api_key)
    server.add_user("ann")
    server.add_user("svc")
    return server


def client_of(
    server: HeadscaleSimulator,
    *,
    policy: tenacity.Retrying | None = None,
    api_key: str | None = None,
    now: Callable[[], datetime] | None = None,
) -> HeadscaleWriter:
    """Return a client of the server. By default, it sends the valid API key, and its clock is the server's."""
    client = json_client(
        server.handle,
        HEADSCALE,
        base_url="http://headscale",
        read_token=lambda: api_key or server.api_key,
        now=now or server.now,
    )
    return HeadscaleWriter(HttpTransport(client), policy or no_retries())


def retrying_on(clock: Clock) -> tenacity.Retrying:
    """Return the retry policy of `cleanup`, on a simulated clock."""
    return RetryPolicy(timedelta(minutes=2), StopAt(clock), clock=clock.monotonic)


@pytest.fixture
def headscale(server: HeadscaleSimulator, clock: Clock) -> HeadscaleWriter:
    return client_of(server, policy=retrying_on(clock))


def find_user(headscale: HeadscaleWriter, name: str = "svc") -> User:
    """Return the user that Headscale lists with this name."""
    [user] = [user for user in headscale.users() if user.name == name]
    return user


def create_key(headscale: HeadscaleWriter, clock: Clock, **spec: object) -> PreAuthKey:
    """Create a pre-auth key, by default with a lifetime of an hour, for the user `svc`."""
    key_spec = replace(KeySpec(find_user(headscale), HOUR), **spec)  # type: ignore[arg-type]
    return headscale.create_pre_auth_key(key_spec, now=clock.now)


def unexpired_keys(server: HeadscaleSimulator, clock: Clock) -> list[str]:
    """Return the secrets of the keys that have not expired."""
    return [key.key for key in server.keys if key.expires_at > clock.now()]


def requested_paths(server: HeadscaleSimulator) -> list[str]:
    return [exchange.path for exchange in server.requests]


# --- Detecting the version -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "detected", "request_count"),
    [
        pytest.param("0.23.0", "0.23 to 0.25", 2, id="0.23"),
        pytest.param("0.25.1", "0.23 to 0.25", 2, id="0.25"),
        pytest.param("0.26.1", "0.26 or 0.27", 2, id="0.26"),
        *(pytest.param(version, version, 1, id=version) for version in VERSIONS_WITH_A_VERSION_ENDPOINT),
    ],
)
def test_version_is_detected_once_even_with_a_wrong_api_key(
    version: str, detected: str, request_count: int, clock: Clock
) -> None:
    server = server_of(version, clock)
    headscale = client_of(server, api_key="wrong")
    assert [headscale.version(), headscale.version()] == [detected, detected]
    assert requested_paths(server) == ["/version", "/swagger/v1/openapiv2.json"][:request_count]


@pytest.mark.parametrize("reported", ["dev", "v0.0.0-20260721000000-f20f1f12abcd", "(devel)", "1.0.0", "v0.x"])
@pytest.mark.parametrize(
    ("version", "detected"),
    [
        ("0.27.1", "0.26 or 0.27"),
        ("0.28.0", "0.28 or 0.29"),
        ("0.29.2", "0.28 or 0.29"),
        ("0.30.0", "0.30 or newer"),
    ],
)
def test_release_of_a_custom_build_is_detected_by_its_api(
    version: str, detected: str, reported: str, clock: Clock
) -> None:
    """The client can expire a key only if it sends the request of the right release."""
    server = server_of(version, clock, reported_version=reported)
    headscale = client_of(server)
    assert headscale.version() == detected
    key = create_key(headscale, clock)
    headscale.expire_pre_auth_key(key, find_user(headscale))
    assert unexpired_keys(server, clock) == []


@pytest.mark.parametrize("reported", [None, "v0.22.3"])
def test_unsupported_version_is_refused(reported: str | None, clock: Clock) -> None:
    server = HeadscaleSimulator("0.22.3", now=clock.now)
    if reported:
        server.faults.add(faults.answer(200, json.dumps({"version": reported})), path="^/version")
    headscale = client_of(server, policy=retrying_on(clock))
    with pytest.raises(ResponseError, match=r"0\.22.* 0\.23"):
        headscale.version()
    assert server.writes == []
    assert clock.elapsed_s == 0, "it must not be retried"


@pytest.mark.parametrize(
    ("fault", "kind", "pattern"),
    [
        pytest.param(faults.html(200), ResponseError, "HEADSCALE_URL", id="web-page"),
        pytest.param(faults.malformed_json(), ResponseError, "HEADSCALE_URL", id="malformed-json"),
        pytest.param(faults.answer(200, "[]"), ResponseError, "HEADSCALE_URL", id="other-api"),
        pytest.param(faults.html(404), TransientError, "HEADSCALE_URL", id="proxy-without-route"),
        pytest.param(faults.html(502), TransientError, "502", id="proxy-without-upstream"),
        pytest.param(faults.html(403), AuthError, "403", id="proxy-with-allow-list"),
        pytest.param(faults.drop(), TransientError, "HEADSCALE_URL", id="connection-lost"),
    ],
)
def test_response_of_another_server_is_an_error(
    fault: Fault, kind: type[ApiError], pattern: str, server: HeadscaleSimulator
) -> None:
    server.faults.add(fault, times=None)
    with pytest.raises(kind, match=pattern):
        client_of(server).version()


def test_version_behind_a_proxy_is_detected_by_the_api(server: HeadscaleSimulator, clock: Clock) -> None:
    """An Ingress may route only /api/v1 to Headscale, so the path /version is not available."""
    server.faults.add(faults.html(404), path="^/(version|swagger)", times=None)
    headscale = client_of(server)
    key = create_key(headscale, clock)
    headscale.expire_pre_auth_key(key, find_user(headscale))
    assert unexpired_keys(server, clock) == []


def test_wrongly_detected_version_is_corrected(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    """A proxy responds to the four requests that detect the version. The last response is that of release 0.28."""
    key = create_key(client_of(server), clock)
    server.faults.add(faults.answer(200, '{"preAuthKeys": []}'), path=DETECTION, times=4)
    assert headscale.version() == "0.28 or newer"
    assert server.faults.pending == 0
    assert [listed.id for listed in headscale.pre_auth_keys(find_user(headscale))] == [key.id]
    headscale.expire_pre_auth_key(key, find_user(headscale))
    assert unexpired_keys(server, clock) == []


# --- Users ---------------------------------------------------------------------------------------------


def test_users_have_id_and_name(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    assert headscale.users() == [User("1", "ann"), User("2", "svc")]


def test_user_with_the_name_that_tagged_nodes_show(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_user("tagged-devices")
    assert "tagged-devices" in {user.name for user in headscale.users()}


def test_user_of_an_oidc_provider_that_reports_no_name(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    """Some releases then report the email as the name."""
    server.add_user("", "bob@example.com", provider="oidc")
    name = "bob@example.com" if server.dialect.user_name_falls_back else ""
    details = ("bob@example.com", "oidc") if server.dialect.user_details else ("", "")
    assert headscale.users()[-1] == User("3", name, *details)


# --- Creating keys -------------------------------------------------------------------------------------


def test_key_belongs_to_the_user_and_is_valid(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    key = create_key(headscale, clock)
    [created] = server.keys
    assert key.secret.get_secret_value() == created.key
    assert (key.id, created.user_id, created.reusable, created.ephemeral, created.tags) == (
        str(created.id),
        2,
        False,
        False,
        (),
    )
    # The client adds up to a minute to the lifetime, so that the keys of two pods that start together differ.
    assert HOUR <= created.expires_at - clock.now() < HOUR + timedelta(minutes=1)
    assert server.register(key=created.key, hostname=NAME).user_id == 2


def test_key_has_the_requested_properties(server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock) -> None:
    tags = frozenset({"tag:web", "tag:prod"})
    key = create_key(headscale, clock, lifetime=timedelta(days=3), reusable=True, ephemeral=True, tags=tags)
    [created] = server.keys
    assert (created.reusable, created.ephemeral, created.user_id, set(created.tags)) == (True, True, 2, set(tags))
    # Release 0.23 omits the tags in its response to a creation.
    assert (key.reusable, key.ephemeral, key.tags or tags) == (True, True, tags)
    assert created.expires_at - clock.now() >= timedelta(days=3)


def test_expiration_is_sent_with_microseconds_in_utc(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    clock.sleep(0.123456)
    create_key(headscale, clock)
    body = json.loads(server.writes[-1].body)
    # The simulated clock starts at 12:00, and the lifetime is an hour and up to a minute.
    assert re.fullmatch(r"2026-03-01T13:0[01]:\d\d\.\d{6}Z", body["expiration"])


@pytest.mark.parametrize("version", [version for version in VERSIONS if "0.24" <= version < "0.26"])
def test_ambiguous_user_name_is_not_retried(version: str, clock: Clock) -> None:
    """Up to 0.25, requests identify the owner of a key only by name, so a second user of this name is an error."""
    server = server_of(version, clock)
    user = find_user(client_of(server))
    server.add_user("svc", provider="oidc")
    headscale = client_of(server, policy=retrying_on(clock))
    for request in (
        headscale.pre_auth_keys,
        lambda owner: headscale.create_pre_auth_key(KeySpec(owner, HOUR), now=clock.now),
    ):
        with pytest.raises(ResponseError, match="users rename"):
            request(user)
    assert clock.elapsed_s == 0


def test_numeric_user_name_is_not_used_as_an_id(clock: Clock, server: HeadscaleSimulator) -> None:
    server.add_user("1")
    headscale = client_of(server)
    headscale.create_pre_auth_key(KeySpec(find_user(headscale, "1"), HOUR), now=clock.now)
    assert [key.user_id for key in server.keys] == [3]


@pytest.mark.parametrize("skew", SKEWS)
def test_key_has_the_requested_lifetime_despite_clock_skew(
    skew: timedelta, server: HeadscaleSimulator, clock: Clock
) -> None:
    clock.skew = skew
    headscale = client_of(server, now=clock.now)
    headscale.create_pre_auth_key(KeySpec(find_user(headscale), HOUR), now=clock.now)
    [created] = server.keys
    assert HOUR - timedelta(seconds=1) <= created.expires_at - clock.true_now() < HOUR + timedelta(minutes=1)


@pytest.mark.parametrize("skew", SKEWS)
def test_key_with_another_lifetime_is_expired_and_refused(
    skew: timedelta, server: HeadscaleSimulator, clock: Clock
) -> None:
    """The caller passes a wrong time, so the created key has another lifetime than the requested lifetime."""
    headscale = client_of(server)
    user = find_user(headscale)
    with pytest.raises(ResponseError, match="clock"):
        headscale.create_pre_auth_key(KeySpec(user, HOUR), now=lambda: clock.now() + skew)
    assert len(server.keys) == 1
    assert unexpired_keys(server, clock) == []


def test_key_has_its_whole_lifetime_after_retries(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "random", lambda: 0.0)
    user, lifetime = find_user(headscale), timedelta(seconds=100)
    server.faults.add(faults.html(502), method="POST", times=None)
    clock.schedule(60, server.faults.clear)
    key = headscale.create_pre_auth_key(KeySpec(user, lifetime), now=clock.now)
    assert key.expires_at is not None
    # Headscale reports its time in whole seconds.
    assert key.expires_at - clock.now() > lifetime - timedelta(seconds=2)


def test_created_key_without_its_secret_is_refused_and_expired(server: HeadscaleSimulator, clock: Clock) -> None:
    """Up to 0.27, it is not expired, because a key can be expired only by its secret."""
    headscale = client_of(server)
    create_key(headscale, clock)
    [first] = server.keys
    response = json.loads(server.requests[-1].response_body)
    response["preAuthKey"] |= {"id": "2", "key": ""}
    fault = replace(faults.answer(200, json.dumps(response)), after_execution=True)
    server.faults.add(fault, path="/api/v1/preauthkey")
    with pytest.raises(ResponseError, match="no secret"):
        create_key(headscale, clock)
    assert len(server.keys) == 2
    is_expired = unexpired_keys(server, clock) == [first.key]
    assert is_expired is (server.version >= "0.28")


@pytest.mark.parametrize("skew", [timedelta(minutes=4), timedelta(minutes=-29)])
def test_small_clock_skew_is_tolerated(skew: timedelta, server: HeadscaleSimulator, clock: Clock) -> None:
    """A lifetime may be half as long as requested, or five minutes longer."""
    headscale = client_of(server)
    user = find_user(headscale)
    headscale.create_pre_auth_key(KeySpec(user, HOUR), now=lambda: clock.now() + skew)
    assert len(unexpired_keys(server, clock)) == 1


# --- Lost responses ------------------------------------------------------------------------------------

CREATE = ("POST", "/api/v1/preauthkey$")
LIST = ("GET", "/api/v1/preauthkey")
EXPIRE = ("POST", "/api/v1/preauthkey/expire")


def add_fault(server: HeadscaleSimulator, request: tuple[str, str], fault: Fault, *, times: int | None = 1) -> None:
    """Inject a fault into the next requests with this method and path."""
    method, path = request
    server.faults.add(fault, method=method, path=path, times=times)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.drop(after_execution=True), id="connection-lost-after-execution"),
        pytest.param(faults.hang(after_execution=True), id="hanging-after-execution"),
        pytest.param(faults.truncate(), id="truncated-response"),
        pytest.param(faults.drop(), id="connection-lost-before-commit"),
        pytest.param(faults.refuse(), id="refused"),
        pytest.param(faults.html(502), id="error-of-a-proxy"),
        pytest.param(faults.too_many_requests(1), id="rate-limited"),
    ],
)
@pytest.mark.parametrize("times", [1, 3])
def test_lost_response_leaves_one_usable_key(
    fault: Fault, times: int, server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    add_fault(server, CREATE, fault, times=times)
    key = create_key(headscale, clock)
    assert unexpired_keys(server, clock) == [key.secret.get_secret_value()]


@pytest.mark.parametrize("failing", [LIST, EXPIRE])
@pytest.mark.parametrize(
    "fault", [pytest.param(faults.html(502), id="502"), pytest.param(faults.drop(after_execution=True), id="lost")]
)
def test_lost_key_is_expired_despite_further_faults(
    failing: tuple[str, str], fault: Fault, server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    add_fault(server, CREATE, faults.drop(after_execution=True))
    add_fault(server, failing, fault, times=2)
    key = create_key(headscale, clock)
    assert unexpired_keys(server, clock) == [key.secret.get_secret_value()]


def test_lost_key_with_a_lifetime_in_fractions_of_a_second_is_expired(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    add_fault(server, CREATE, faults.drop(after_execution=True))
    key = create_key(headscale, clock, lifetime=timedelta(seconds=90.5))
    assert unexpired_keys(server, clock) == [key.secret.get_secret_value()]


@pytest.mark.parametrize("email", ["web@example.com", "ann"], ids=["unique", "name-of-another-user"])
def test_lost_key_is_expired_for_a_user_with_an_email(
    email: str, server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    """Releases 0.24 and 0.25 list the email of a key's user instead of the name, if the user has one."""
    user = server.add_user("web", email)
    add_fault(server, CREATE, faults.drop(after_execution=True))
    spec = KeySpec(User(str(user.id), "web"), HOUR)
    key = headscale.create_pre_auth_key(spec, now=clock.now)
    assert unexpired_keys(server, clock) == [key.secret.get_secret_value()]


def test_other_keys_are_not_expired_after_a_lost_response(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    """The other keys differ from the lost key: in the user, in the lifetime, or because they are reusable."""
    other_keys = [
        server.create_key("ann", expires_in=HOUR),
        server.create_key("svc", expires_in=HOUR, reusable=True),
        server.create_key("svc", expires_in=2 * HOUR),
        server.create_key("svc", expires_in=HOUR - timedelta(seconds=1)),
    ]
    add_fault(server, CREATE, faults.drop(after_execution=True))
    key = create_key(headscale, clock)
    assert unexpired_keys(server, clock) == [*(key.key for key in other_keys), key.secret.get_secret_value()]


def test_reusable_or_used_key_with_the_expiry_of_the_lost_key_is_not_expired(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Usually, the random part of the lifetime distinguishes the keys.
    monkeypatch.setattr(random, "random", lambda: 0.0)
    other_keys = [server.create_key("svc", expires_in=HOUR, reusable=is_reusable) for is_reusable in (True, False)]
    server.register(key=other_keys[1].key, hostname=NAME)
    add_fault(server, CREATE, faults.drop(after_execution=True))
    key = create_key(headscale, clock)
    assert unexpired_keys(server, clock) == [*(key.key for key in other_keys), key.secret.get_secret_value()]


def test_key_of_another_pod_with_nearly_the_same_expiry_is_not_expired(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pods start at the same time. Headscale does not execute the first request of the second pod."""
    monkeypatch.setattr(random, "random", cycle([0.5, 0.505]).__next__)
    other = create_key(client_of(server), clock)
    add_fault(server, CREATE, faults.html(502))
    key = create_key(headscale, clock)
    assert unexpired_keys(server, clock) == [other.secret.get_secret_value(), key.secret.get_secret_value()]


def test_create_without_a_response_is_logged(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock, events: list[dict[str, object]]
) -> None:
    user = find_user(headscale)
    add_fault(server, CREATE, faults.drop(), times=None)
    with pytest.raises(TransientError):
        headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now)
    assert clock.elapsed_s <= 120
    assert [event["user"] for event in events_named(events, "pre_auth_key.create_unconfirmed")] == ["svc"]


def test_create_that_was_not_sent_leaves_no_key_to_look_for(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock, events: list[dict[str, object]]
) -> None:
    user = find_user(headscale)
    add_fault(server, CREATE, faults.refuse(), times=None)
    with pytest.raises(TransientError):
        headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now)
    assert events_named(events, "pre_auth_key.create_unconfirmed") == []
    server.faults.clear()
    server.requests.clear()
    headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now)
    assert ("GET", "/api/v1/preauthkey") not in [(exchange.method, exchange.path) for exchange in server.requests]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.html(200), id="html"),
        pytest.param(faults.malformed_json(), id="malformed-json"),
        pytest.param(faults.answer(200, "{}"), id="without-key"),
        pytest.param(faults.answer(400, '{"code": 3, "message": "no", "details": []}'), id="400"),
    ],
)
def test_create_with_a_malformed_response_is_not_repeated(
    fault: Fault, server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    user = find_user(headscale)
    add_fault(server, CREATE, fault)
    with pytest.raises(ResponseError):
        headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now)
    assert len(server.writes) == 1


@pytest.mark.parametrize("later", [timedelta(minutes=5), timedelta(hours=3)], ids=["key-is-valid", "key-has-expired"])
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.wrong_content_type(after_execution=True), id="html"),
        pytest.param(
            replace(faults.answer(200, headers={"Content-Encoding": "gzip"}), after_execution=True), id="gzip"
        ),
    ],
)
def test_key_of_a_malformed_response_is_expired_by_the_next_call(
    fault: Fault,
    later: timedelta,
    server: HeadscaleSimulator,
    headscale: HeadscaleWriter,
    clock: Clock,
    events: list[dict[str, object]],
) -> None:
    """The server created the key, but a proxy replaced the response with a web page, or compressed it.

    If the key's lifetime has ended before the next call, some releases refuse to expire the key. That is not an error.
    """
    user = find_user(headscale)
    add_fault(server, CREATE, fault)
    with pytest.raises(ResponseError):
        headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now)
    assert len(unexpired_keys(server, clock)) == 1
    assert [event["user"] for event in events_named(events, "pre_auth_key.create_unconfirmed")] == ["svc"]
    clock.sleep(later.total_seconds())
    key = headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now)
    assert [event["key_id"] for event in events_named(events, "pre_auth_key.expired")] == ["1"]
    assert unexpired_keys(server, clock) == [key.secret.get_secret_value()]


# --- Expiring keys -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [faults.drop(after_execution=True), faults.hang(after_execution=True), faults.html(502)]
)
def test_expiry_with_a_lost_response_succeeds(
    fault: Fault, server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    key = create_key(headscale, clock)
    add_fault(server, EXPIRE, fault)
    headscale.expire_pre_auth_key(key, find_user(headscale))
    assert unexpired_keys(server, clock) == []
    assert clock.elapsed_s < 10


def test_used_key_counts_as_expired(server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock) -> None:
    key = create_key(headscale, clock)
    server.register(key=key.secret.get_secret_value(), hostname=NAME)
    headscale.expire_pre_auth_key(key, find_user(headscale))
    assert clock.elapsed_s < 10


def test_missing_key_counts_as_expired(server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock) -> None:
    key = create_key(headscale, clock)
    server.delete_key(int(key.id))
    headscale.expire_pre_auth_key(key, find_user(headscale))
    assert clock.elapsed_s == 0


def test_only_the_users_keys_are_listed(server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock) -> None:
    server.create_key("ann")
    reusable = server.create_key("svc", reusable=True, tags=("tag:web",))
    server.register(key=server.create_key("svc").key, hostname=NAME)
    listed = headscale.pre_auth_keys(find_user(headscale))
    assert [(key.id, key.reusable, key.used) for key in listed] == [("2", True, False), ("3", False, True)]
    assert listed[0].expires_at == reusable.expires_at
    assert [key.is_usable(clock.now()) for key in listed] == [True, False]


# --- Nodes ---------------------------------------------------------------------------------------------


def test_fields_of_a_node(server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock) -> None:
    registered = server.add_node(NAME, user="svc")
    server.add_node("phone", user="ann", registered_by="oidc", online=False, expires_at=clock.now() - HOUR)
    pod, phone = headscale.nodes()
    assert (pod.id, pod.hostname, pod.machine_key) == (str(registered.id), NAME, registered.machine_key)
    assert tuple(map(str, pod.addresses)) == registered.addresses
    assert (pod.user, pod.tags, pod.online, pod.expires_at) == (User("2", "svc"), frozenset(), True, None)
    assert (pod.registered_by, pod.pre_auth_key and pod.pre_auth_key.id) == (RegisterMethod.AUTH_KEY, "1")
    assert (phone.registered_by, phone.pre_auth_key, phone.online) == (RegisterMethod.OIDC, None, False)
    assert (pod.is_expired(clock.now()), phone.is_expired(clock.now())) == (False, True)
    assert headscale.node(pod.id) == pod


def test_tagged_node_has_tags_and_key(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_node(NAME, user="svc", tags=("tag:web",))
    for node in (*headscale.nodes(), headscale.node("1")):
        assert node.tags == {"tag:web"}
        assert node.pre_auth_key is not None
        assert node.pre_auth_key.user is not None
        assert node.pre_auth_key.user.is_same(User("2", "svc"))
        # From 0.28 on, lists contain a pseudo-user as the owner of a tagged node. The client ignores this user.
        assert node.user in (User("2", "svc"), None)


@pytest.mark.parametrize("node_id", ["0", "", "-1", "1/expire", "../user", "\N{FULLWIDTH DIGIT ONE}"])
def test_malformed_id_is_not_sent(node_id: str, server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    """Up to 0.26, the id 0 addresses the first node."""
    server.add_node(NAME, user="svc")
    with pytest.raises(ValueError, match=r"the id is missing|not a positive integer"):
        headscale.node(node_id)
    assert server.requests == []


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.html(200), id="html"),
        pytest.param(faults.answer(200, "{}"), id="list-missing"),
        pytest.param(faults.answer(200, '{"nodes": null}'), id="null"),
        pytest.param(faults.answer(200, '{"nodes": {}}'), id="object"),
        pytest.param(faults.answer(200, '{"nodes": [{"id": "1"}]}'), id="node-without-name"),
        pytest.param(faults.answer(200, '{"nodes": [null]}'), id="null-node"),
        pytest.param(faults.answer(200, '"nodes"'), id="text"),
    ],
)
def test_malformed_list_is_an_error(fault: Fault, server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.faults.add(fault, times=None)
    with pytest.raises(ResponseError, match="HEADSCALE_URL"):
        headscale.nodes()


# --- Missing nodes -------------------------------------------------------------------------------------


def test_missing_node_is_not_found(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_node("laptop", user="ann")
    with pytest.raises(NotFoundError):
        headscale.node("7")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.html(404), id="html"),
        pytest.param(faults.answer(404), id="empty"),
        pytest.param(faults.answer(404, "404 page not found\n", content_type="text/plain"), id="text"),
        pytest.param(faults.answer(404, "{}"), id="other-json"),
        pytest.param(faults.answer(404, '{"error": "no route", "status": 404}'), id="json-with-a-status"),
        pytest.param(faults.answer(500, '{"code": 2, "message": "database is locked", "details": []}'), id="500"),
        pytest.param(faults.answer(500, "record not found", content_type="text/plain"), id="500-as-text"),
        pytest.param(
            faults.answer(500, '{"code": 2, "message": "lookup postgres: host not found", "details": []}'),
            id="database-not-found",
        ),
        pytest.param(faults.answer(503, '{"code": 14, "message": "peer not found"}'), id="503"),
    ],
)
def test_error_of_a_proxy_or_database_does_not_mean_a_missing_node(
    fault: Fault, server: HeadscaleSimulator, clock: Clock
) -> None:
    server.add_node(NAME, user="svc")
    server.faults.add(fault)
    with pytest.raises(TransientError):
        client_of(server).node("1")
    # The failed requests are retried.
    server.faults.add(fault, times=2)
    assert client_of(server, policy=retrying_on(clock)).node("1").id == "1"


def test_wrong_api_key_does_not_mean_a_missing_node(server: HeadscaleSimulator, clock: Clock) -> None:
    """Up to 0.26, the responses for a wrong API key and for a missing node both have the status 500."""
    headscale = client_of(server, policy=retrying_on(clock), api_key="hskey-api-wrong")
    for call in (headscale.nodes, lambda: headscale.node("7")):
        with pytest.raises(AuthError, match="headscale apikeys create"):
            call()
    assert clock.elapsed_s == 0, "it must not be retried"


@pytest.mark.parametrize("status", [401, 403])
def test_refusal_by_a_reverse_proxy_gives_no_advice_on_the_key(status: int, server: HeadscaleSimulator) -> None:
    server.faults.add(faults.html(status), times=None)
    with pytest.raises(AuthError, match="in front of Headscale") as raised:
        client_of(server).users()
    assert "apikeys" not in str(raised.value)


def test_refused_api_key_is_retried_while_the_database_is_down(server: HeadscaleSimulator, clock: Clock) -> None:
    """Without its database, the server refuses every API key."""
    server.database_is_down = True
    clock.schedule(30, lambda: setattr(server, "database_is_down", False))
    headscale = client_of(server, policy=retrying_on(clock))
    assert [user.name for user in headscale.users()] == ["ann", "svc"]
    assert 30 <= clock.elapsed_s < 60


def test_list_that_exceeds_one_response_is_a_permanent_error(server: HeadscaleSimulator, clock: Clock) -> None:
    headscale = client_of(server, policy=retrying_on(clock))
    user = find_user(headscale)
    body = '{"code": 8, "message": "grpc: received message larger than max", "details": []}'
    server.faults.add(faults.answer(429, body), path="/api/v1/", times=None)
    with pytest.raises(ResponseError, match="nodes"):
        headscale.nodes()
    with pytest.raises(ResponseError, match="pre-auth keys"):
        headscale.pre_auth_keys(user)
    assert clock.elapsed_s == 0


# --- Deleting nodes ------------------------------------------------------------------------------------


def always_owned(_node: Node) -> bool:
    """Return True, as the check before the deletion of a node."""
    return True


def test_deletion_of_a_missing_node_succeeds(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_node("laptop", user="ann")
    server.add_node(NAME, user="svc")
    [_, node] = headscale.nodes()
    server.delete_node(2)
    headscale.delete_node(node, is_still_owned=always_owned)
    assert server.writes == []


@pytest.mark.parametrize(
    "fault", [faults.drop(after_execution=True), faults.hang(after_execution=True), faults.html(502)]
)
def test_deletion_with_a_lost_response_is_confirmed(
    fault: Fault, server: HeadscaleSimulator, headscale: HeadscaleWriter
) -> None:
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    server.faults.add(fault, method="DELETE")
    headscale.delete_node(node, is_still_owned=always_owned)
    assert server.nodes == []


def test_other_machine_with_the_same_id_is_not_deleted(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    """In databases of older releases, the id of a deleted node can be assigned again."""
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    with pytest.raises(ConflictError, match=r"[Nn]ode 1"):
        headscale.delete_node(replace(node, machine_key="mkey:" + "0" * 64), is_still_owned=always_owned)
    assert server.writes == []


def test_unreadable_node_is_not_deleted(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    server.faults.add(faults.html(404), path="/api/v1/node/", times=None)
    with pytest.raises(TransientError):
        headscale.delete_node(node, is_still_owned=always_owned)
    assert server.writes == []


def test_node_that_is_no_longer_owned_is_not_deleted(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    with pytest.raises(ConflictError, match=r"[Nn]ode 1"):
        headscale.delete_node(node, is_still_owned=lambda _node: False)
    assert server.writes == []


def test_response_of_a_proxy_to_a_deletion_is_an_error(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    server.faults.add(faults.html(200), method="DELETE")
    with pytest.raises(ResponseError, match="DELETE"):
        headscale.delete_node(node, is_still_owned=always_owned)


def test_node_is_read_again_before_a_deletion_is_retried(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    """Before the retry, the database is restored from a backup, in which the id belongs to another machine."""
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    server.faults.add(faults.html(502), method="DELETE")

    def restore() -> None:
        nodes = server._state.nodes  # noqa: SLF001 - a real backup would need more code
        nodes[1] = replace(nodes[1], machine_key="mkey:" + "0" * 64)

    clock.schedule(0.1, restore)
    with pytest.raises(ConflictError, match="another machine"):
        headscale.delete_node(node, is_still_owned=always_owned)
    assert len(server.nodes) == 1


# --- Upgrades at run time ------------------------------------------------------------------------------

# An API key in a format that every release accepts. From 0.28 on, Headscale refuses the longer keys of 0.23 and 0.24.
PORTABLE_KEY = f"{'a' * 7}.{'b' * 32}"


@pytest.mark.parametrize(
    ("old", "new"), [pytest.param(*pair, id="-to-".join(pair)) for pair in combinations(VERSIONS, 2)]
)
@pytest.mark.parametrize("breaks_connection", [True, False], ids=["connection-lost", "between-two-requests"])
def test_client_adapts_to_an_upgrade(old: str, new: str, breaks_connection: bool, clock: Clock) -> None:
    server = server_of(old, clock, api_key=PORTABLE_KEY)
    headscale = client_of(server, policy=retrying_on(clock))
    user = find_user(headscale)
    old_key = create_key(headscale, clock)
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()

    server.upgrade(new)
    if breaks_connection:
        server.faults.add(faults.drop())
    headscale.expire_pre_auth_key(old_key, user)
    add_fault(server, CREATE, faults.drop(after_execution=True))
    new_key = headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now)
    keys_of_nodes = [key.key for key in server.keys if key.used]
    assert [key for key in unexpired_keys(server, clock) if key not in keys_of_nodes] == [
        new_key.secret.get_secret_value()
    ]
    assert [key.id for key in headscale.pre_auth_keys(user)] == [str(key.id) for key in server.keys]
    headscale.delete_node(node, is_still_owned=always_owned)
    with pytest.raises(NotFoundError):
        headscale.node(node.id)


@pytest.mark.parametrize(("old", "new"), [("0.25.1", "0.26.1"), ("0.23.0", "0.30.0"), ("0.29.2", "0.30.0")])
def test_creation_of_a_key_after_an_upgrade_needs_no_retries(old: str, new: str, clock: Clock) -> None:
    server = server_of(old, clock, api_key=PORTABLE_KEY)
    headscale = client_of(server)
    user = find_user(headscale)
    headscale.version()
    server.upgrade(new)
    headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now)
    assert [key.user_id for key in server.keys] == [2]
