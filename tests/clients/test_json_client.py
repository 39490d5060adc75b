"""Tests of the client of a JSON API: responses, errors, and tokens, which no error may contain.

The API is called the upstream.
"""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from operator import itemgetter
from typing import Any

import pytest

from lifecycle.clients.http import MAX_RESPONSE_BYTES, HttpClient
from lifecycle.clients.json_client import JsonClient
from lifecycle.clients.response import Response as ApiResponse
from lifecycle.clients.transport import open_http
from lifecycle.clients.trust import public_trust
from lifecycle.clients.upstream import Upstream
from lifecycle.domain.errors import ApiError, AuthError, ConfigError, ConflictError, ResponseError, TransientError
from tests.clients.servers import all_texts_of
from tests.simulators import faults
from tests.simulators.faults import Fault
from tests.simulators.memory import MemoryClient
from tests.simulators.messages import Request, Response, json_response, text_response
from tests.simulators.serve import serve
from tests.simulators.upstream import Upstream as UpstreamSimulator

TOKEN = "tskey-0123456789abcdefghijklmnopqrstuvwxyz"
OTHER_TOKEN = "tskey-abcdefghijklmnopqrstuvwxyz0123456789"


class Api(UpstreamSimulator):
    """An API that responds with the path of the request, if the token is valid.

    Attributes:
        token: the valid token.
        health: the HTTP status of responses to health checks.
        authorizations: the header Authorization of each health check.
    """

    def __init__(self) -> None:
        super().__init__()
        self.token = TOKEN
        self.health = 200
        self.authorizations: list[str | None] = []

    def answer(self, request: Request, *, from_previous_state: bool) -> Response:
        if request.path == "/health":
            self.authorizations.append(request.headers.get("authorization"))
            return Response(status=self.health)
        if request.path != "/open" and request.headers.get("authorization") != f"Bearer {self.token}":
            return text_response("Unauthorized", 401)
        return json_response({"path": request.path, "accept-encoding": request.headers.get("accept-encoding")})


def explain_401(request: str, response: ApiResponse) -> ApiError | None:
    if response.status == 401:
        return AuthError(f"token refused ({request}){response.reason}", upstream="Api", status=401)
    return None


API = Upstream("Api", url_setting="API_URL", ca_setting="API_CA_FILE", explain=explain_401, health_path="/health")


@pytest.fixture
def api() -> Api:
    return Api()


def client_of(
    api: Api | str,
    *,
    read: Callable[[], str] = lambda: TOKEN,
    on_outcome: Callable[[str], None] = lambda _outcome: None,
    **settings: Any,
) -> JsonClient:
    """Return a client of an API: a simulator in this process, or a URL."""
    http = open_http(api, trust=public_trust()) if isinstance(api, str) else MemoryClient(api.handle, "http://api")
    defaults: dict[str, Any] = {"upstream": API, "timeout": timedelta(seconds=10)}
    return JsonClient(HttpClient(http, **(defaults | settings)), read_token=read, on_outcome=on_outcome)


@pytest.fixture(params=["in-process", "over-loopback"])
def client(request: pytest.FixtureRequest, api: Api) -> Iterator[JsonClient]:
    """A client of the API, which calls the simulator in this process or sends its requests over loopback."""
    if request.param == "in-process":
        yield client_of(api)
        return
    with serve(api) as url:
        yield client_of(url, timeout=timedelta(seconds=2))


def statuses(api: Api) -> list[int | None]:
    """Return the statuses of the requests, without health checks."""
    return [exchange.status for exchange in api.requests if exchange.path != "/health"]


def failure(client: JsonClient, path: str = "/thing") -> ApiError:
    with pytest.raises(ApiError) as raised:
        client.send("GET", path)
    return raised.value


# --- Statuses ------------------------------------------------------------------------------------------


def test_request_and_response_are_json(client: JsonClient, api: Api) -> None:
    body: Any = {"comment": "Zürich \u2028", "proxied": False, "ttl": 60, "tags": []}
    response = client.send("POST", "/thing", params={"page": "2"}, body=body)
    assert (response.status, response.json) == (200, {"path": "/thing", "accept-encoding": "identity"})
    assert (api.requests[0].query, json.loads(api.requests[0].body)) == ("page=2", body)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *(pytest.param(status, TransientError, id=str(status)) for status in (429, 500, 502, 503, 504, 520, 524, 599)),
        *(pytest.param(status, ResponseError, id=str(status)) for status in (400, 404, 405, 409, 415, 422)),
        *(pytest.param(status, ResponseError, id=str(status)) for status in (301, 302, 303, 307, 308)),
        pytest.param(401, AuthError, id="401-explained"),
    ],
)
def test_kind_of_error_for_each_status(client: JsonClient, api: Api, status: int, kind: type[ApiError]) -> None:
    api.faults.add(faults.answer(status, b"{}", headers={"location": "/elsewhere"}), times=None)
    error = failure(client)
    assert type(error) is kind
    assert (error.status, error.upstream) == (status, "Api")
    assert "GET /thing" in str(error)
    if 300 <= status < 400:
        # If the client followed the redirect, it would send the token to the new address.
        assert len(api.requests) == 1
        assert "API_URL" in str(error)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_every_2xx_is_success(client: JsonClient, api: Api, status: int) -> None:
    api.faults.add(faults.answer(status))
    assert client.send("GET", "/thing").status == status


def test_explanation_by_the_upstream_has_precedence(api: Api) -> None:
    def explain(request: str, _response: ApiResponse) -> ApiError:
        return ConflictError(request, upstream="Api")

    api.faults.add(faults.answer(503))
    client = client_of(api, upstream=Upstream("Api", url_setting="API_URL", ca_setting="", explain=explain))
    assert isinstance(failure(client), ConflictError)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        pytest.param(None, "ok", id="ok"),
        pytest.param(faults.drop(), "no_answer", id="lost"),
        pytest.param(faults.answer(429), "throttled", id="throttled"),
        pytest.param(faults.answer(502), "server_error", id="server-error"),
        pytest.param(faults.answer(404), "refused", id="refused"),
    ],
)
def test_outcome_of_each_request_is_reported(api: Api, fault: Fault | None, outcome: str) -> None:
    outcomes: list[str] = []
    client = client_of(api, on_outcome=outcomes.append)
    if fault is None:
        client.send("GET", "/thing")
    else:
        api.faults.add(fault)
        failure(client)
    assert outcomes == [outcome]


# --- Retry-After ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        pytest.param("7", 7.0, id="seconds"),
        pytest.param(" 7 ", 7.0, id="surrounding-spaces"),
        pytest.param("0.5", 0.5, id="fraction"),
        pytest.param("600", 600.0, id="ten-minutes"),
        pytest.param("-5", 0.0, id="negative"),
        pytest.param("999999999999", 900.0, id="longer-than-15-minutes"),
        pytest.param("Wed, 21 Oct 2015 07:28:00 GMT", 0.0, id="date-in-the-past"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 GMT", 900.0, id="date-far-away"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 -0100", None, id="date-out-of-range"),
        pytest.param("soon", None, id="garbage"),
        pytest.param("nan", None, id="not-a-number"),
        pytest.param("", None, id="empty"),
        pytest.param(None, None, id="absent"),
    ],
)
def test_retry_after_in_each_form(api: Api, status: int, header: str | None, seconds: float | None) -> None:
    headers = {} if header is None else {"retry-after": header}
    api.faults.add(faults.answer(status, headers=headers))
    error = failure(client_of(api))
    assert isinstance(error, TransientError)
    assert error.retry_after == (None if seconds is None else timedelta(seconds=seconds))
    assert error.throttled == (status == 429)


def test_retry_after_as_a_date_does_not_depend_on_this_machines_clock(api: Api) -> None:
    headers = {"date": "Mon, 01 Jan 2125 12:00:00 GMT", "retry-after": "Mon, 01 Jan 2125 12:01:00 GMT"}
    api.faults.add(faults.answer(429, headers=headers))
    error = failure(client_of(api))
    assert isinstance(error, TransientError)
    assert error.retry_after == timedelta(minutes=1)


# --- Incomplete and malformed responses ----------------------------------------------------------------


@pytest.mark.max_cases_without_full(5)
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.drop(), id="lost-before-execution"),
        pytest.param(faults.drop(after_execution=True), id="lost-after-execution"),
        pytest.param(faults.refuse(), id="refused"),
        pytest.param(faults.hang(limit_s=5), id="hanging"),
        pytest.param(faults.truncate(), id="truncated-body"),
        pytest.param(faults.drip(interval_s=0.3, limit_s=5), id="slow-drip"),
    ],
)
def test_incomplete_response_is_a_transient_error(client: JsonClient, api: Api, fault: Fault) -> None:
    api.faults.add(fault)
    error = failure(client)
    assert isinstance(error, TransientError)
    assert (error.status, error.retry_after, error.throttled) == (None, None, False)
    assert TOKEN not in all_texts_of(error)
    assert client.send("GET", "/thing").json["path"] == "/thing"


def test_cookie_is_ignored(client: JsonClient, api: Api) -> None:
    """An ingress can set cookies. httpx cannot send a cookie whose value is not ASCII."""
    api.faults.add(faults.answer(200, headers={"set-cookie": "session=\xe9"}))
    client.send("GET", "/thing")
    assert client.send("GET", "/thing").json["path"] == "/thing"


def test_object_hook_replaces_objects(client: JsonClient, api: Api) -> None:
    api.faults.add(faults.answer(200, '{"nodes": [{"id": 1}, {"id": 2}]}'))
    response = client.send("GET", "/thing", object_hook=lambda members: members.get("id", members))
    assert response.json == {"nodes": [1, 2]}


def test_response_that_the_object_hook_cannot_parse_has_no_value(client: JsonClient, api: Api) -> None:
    api.faults.add(faults.answer(200, '{"nodes": [{"name": "no id"}]}'))
    assert client.send("GET", "/thing", object_hook=itemgetter("id")).json is None


def test_response_beyond_the_limit_is_refused(client: JsonClient, api: Api) -> None:
    api.faults.add(faults.oversize(MAX_RESPONSE_BYTES + 1))
    error = failure(client)
    assert isinstance(error, (ResponseError, TransientError))
    # Over loopback, the time-out of 2 s can end before the limit is reached.
    assert "32 MiB" in str(error) or "2 s" in str(error)


def test_list_of_twenty_thousand_nodes_is_read(api: Api) -> None:
    bytes_per_node = 1_250
    size = 20_000 * bytes_per_node
    api.faults.add(faults.oversize(size))
    assert len(client_of(api).send("GET", "/thing").text) == size


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.malformed_json(), id="truncated-json"),
        pytest.param(faults.html(200), id="html"),
        pytest.param(faults.answer(200, b'{"path": 1}', content_type="text/plain"), id="json-as-text"),
        pytest.param(faults.answer(200, b'{"path": 1}', content_type=""), id="no-content-type"),
        pytest.param(faults.answer(200, b""), id="empty"),
        pytest.param(faults.answer(200, b"[" * 100_000), id="nested-too-deep"),
        pytest.param(faults.answer(200, b"\xff\xfe\x00"), id="not-utf-8"),
    ],
)
def test_response_without_valid_json_has_no_value(client: JsonClient, api: Api, fault: Fault) -> None:
    api.faults.add(fault)
    assert client.send("GET", "/thing").json is None


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "application/problem+json", "Application/OpenAPI+JSON"],
)
def test_json_content_types_are_parsed(api: Api, content_type: str) -> None:
    api.faults.add(faults.answer(200, b'{"path": 1}', content_type=content_type))
    assert client_of(api).send("GET", "/thing").json == {"path": 1}


# --- The token -----------------------------------------------------------------------------------------

UNREADABLE = ConfigError("API_TOKEN_FILE: the file cannot be read")


def reading(*results: str | ConfigError) -> Callable[[], str]:
    """Return a function that reads a token. Each call has the next of these results."""
    remaining = list(results)

    def read() -> str:
        result = remaining.pop(0)
        if isinstance(result, ConfigError):
            raise result
        return result

    return read


def test_request_without_authorization_does_not_read_the_token(api: Api) -> None:
    assert client_of(api, read=reading()).send("GET", "/open", authorized=False).status == 200


@pytest.mark.parametrize("results", [[TOKEN, OTHER_TOKEN], [TOKEN, UNREADABLE, OTHER_TOKEN]], ids=["at-once", "later"])
def test_rotated_token_is_read_after_a_refusal(api: Api, results: list[str | ConfigError]) -> None:
    """A token file can be missing for a moment, during an update."""
    outcomes: list[str] = []
    client = client_of(api, read=reading(*results), on_outcome=outcomes.append)
    client.send("GET", "/thing")
    api.token = OTHER_TOKEN
    if UNREADABLE in results:
        assert "API_TOKEN_FILE" in str(failure(client))
    client.send("POST", "/thing")
    assert statuses(api)[-2:] == [401, 200]
    assert outcomes[-2:] == ["refused", "ok"]


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        pytest.param([TOKEN, TOKEN], [401], id="the same"),
        pytest.param([TOKEN, OTHER_TOKEN], [401, 401], id="another"),
        pytest.param([TOKEN, UNREADABLE], [401], id="unreadable after the refusal"),
        pytest.param([UNREADABLE], [], id="unreadable"),
    ],
)
def test_token_without_a_valid_replacement_is_an_auth_error(
    api: Api, results: list[str | ConfigError], expected: list[int]
) -> None:
    """The error is not a ConfigError, because that would end `dns-watch`."""
    api.token = "a-third-token"
    assert isinstance(failure(client_of(api, read=reading(*results))), AuthError)
    assert statuses(api) == expected


# --- Secrets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.answer(401, TOKEN), id="token-in-a-refusal"),
        pytest.param(faults.answer(500, TOKEN), id="token-in-a-server-error"),
        pytest.param(faults.answer(302, headers={"location": f"/?token={TOKEN}"}), id="token-in-a-redirect"),
        pytest.param(faults.answer(429, TOKEN, headers={"retry-after": TOKEN}), id="token-in-retry-after"),
    ],
)
def test_no_error_contains_the_token(client: JsonClient, api: Api, fault: Fault) -> None:
    api.faults.add(fault, times=None)
    assert TOKEN not in all_texts_of(failure(client))


# --- The health check after a refused token ------------------------------------------------------------


@pytest.mark.parametrize("health", [200, 204, 401, 403, 404, 405], ids=str)
def test_refusal_by_a_healthy_upstream_is_an_auth_error(client: JsonClient, api: Api, health: int) -> None:
    """Statuses below 500 count as healthy: a proxy that forwards only the API refuses the health check."""
    api.token = OTHER_TOKEN
    api.health = health
    assert type(failure(client)) is AuthError
    assert [exchange.path for exchange in api.requests] == ["/thing", "/health"]
    assert api.authorizations == [None], "the health check needs no token"


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        *(pytest.param(faults.answer(status), status, id=str(status)) for status in (500, 502, 503)),
        pytest.param(faults.drop(), None, id="lost"),
        pytest.param(faults.refuse(), None, id="refused"),
        pytest.param(faults.hang(limit_s=5), None, id="hanging"),
    ],
)
def test_refusal_by_an_unhealthy_upstream_is_a_transient_error(
    client: JsonClient, api: Api, fault: Fault, status: int | None
) -> None:
    """Headscale also refuses valid API keys while its database is down."""
    api.token = OTHER_TOKEN
    api.faults.add(fault, path="/health")
    error = failure(client)
    assert type(error) is TransientError
    assert error.status == status


def test_refusal_to_read_the_token_does_not_depend_on_the_health_of_the_upstream(api: Api) -> None:
    """For example, Kubernetes refuses access to the Secret with the token."""

    def read() -> str:
        raise AuthError("a permission is missing", upstream="Kubernetes", status=403)

    api.health = 500
    with pytest.raises(AuthError, match="a permission is missing"):
        client_of(api, read=read).send("GET", "/thing")
    assert api.requests == []


def test_no_health_check_unless_the_token_is_refused(api: Api) -> None:
    client = client_of(api)
    client.send("GET", "/thing")
    api.faults.add(faults.answer(404))
    failure(client)
    assert [exchange.path for exchange in api.requests] == ["/thing", "/thing"]


# --- Compression and size ------------------------------------------------------------------------------


@cache
def decompression_bomb() -> bytes:
    """Return 64 MiB, compressed twice."""
    return gzip.compress(gzip.compress(b" " * (64 * 1024 * 1024)))


@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip", "deflate", "br", "GZIP"])
def test_compressed_response_is_refused_without_decompressing(client: JsonClient, api: Api, encoding: str) -> None:
    api.faults.add(faults.answer(200, decompression_bomb(), headers={"content-encoding": encoding}))
    tracemalloc.start()
    try:
        assert isinstance(failure(client), ResponseError)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 1024 * 1024


@pytest.mark.parametrize("item", ["{}", "[[]]", "0"])
def test_json_with_too_many_values_is_refused(api: Api, item: str) -> None:
    """Parsed values take much more memory than the text, so `json` is None, as for malformed JSON."""
    body = "[" + f"{item}," * (8_000_000 // (len(item) + 1)) + f"{item}]"
    api.faults.add(faults.answer(200, body))
    tracemalloc.start()
    try:
        assert client_of(api).send("GET", "/thing").json is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(body)


@pytest.mark.parametrize("encoding", ["identity", "Identity", "", "identity, identity"])
def test_identity_encoding_is_accepted(client: JsonClient, api: Api, encoding: str) -> None:
    api.faults.add(faults.answer(200, '{"a": 1}', headers={"content-encoding": encoding}))
    assert client.send("GET", "/thing").json == {"a": 1}


# --- Messages of the upstream --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        pytest.param(faults.answer(400, '{"code": 3, "message": "bad tag"}'), "bad tag", id="grpc"),
        pytest.param(faults.answer(422, '{"detail": "unexpected property"}'), "unexpected property", id="problem"),
        pytest.param(
            faults.answer(400, '{"errors": [{"code": 1, "error_chain": [{"message": "inner"}]}]}'), "inner", id="chain"
        ),
        pytest.param(faults.answer(500, "database is locked", content_type="text/plain"), "is locked", id="text"),
        pytest.param(faults.html(502), "502 Bad Gateway", id="title"),
        pytest.param(faults.answer(429, '{"error": "slow down"}'), "slow down", id="rate-limit"),
    ],
)
def test_error_contains_the_message_of_the_upstream(client: JsonClient, api: Api, fault: Fault, message: str) -> None:
    api.faults.add(fault)
    assert message in str(failure(client))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("first\nsecond\r\nthird", id="lines"),
        pytest.param("\x1b[31mred\x1b[0m \x07 \x9b31m", id="terminal-escapes"),
        pytest.param("\u202eright to left \u2028 separated", id="unicode-controls"),
        pytest.param("long " * 1000, id="long"),
    ],
)
def test_message_of_the_upstream_becomes_one_short_printable_line(client: JsonClient, api: Api, text: str) -> None:
    api.faults.add(faults.answer(400, json.dumps({"message": text})))
    message = str(failure(client))
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize(
    "body", [pytest.param("é " * 8_000_000, id="text"), pytest.param("<title>" * 2_000_000, id="web page")]
)
def test_long_message_of_the_upstream_is_shortened_quickly(api: Api, body: str) -> None:
    api.faults.add(faults.answer(502, body, content_type="text/plain"))
    started = time.process_time()
    assert len(str(failure(client_of(api)))) < 500
    assert time.process_time() - started < 2


def test_deeply_nested_refusal_does_not_exceed_the_recursion_limit() -> None:
    """From Python 3.12 on, the json module accepts values that are nested more deeply than function calls can be."""
    body: dict[str, Any] = {}
    for _ in range(10_000):
        body = {"errors": [body]}
    assert ApiResponse(400, {}, "", body).reason == ""


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param("hskey-auth-abcdefghijkl-" + "x" * 64, id="prefixed"),
        pytest.param("0123456789abcdef" * 3, id="hexadecimal"),
        pytest.param("abcdefg." + "y" * 32, id="with a dot"),
        pytest.param("cfat_" + "Z" * 40, id="with an underscore"),
    ],
)
def test_secret_in_the_message_of_the_upstream_is_removed(client: JsonClient, api: Api, secret: str) -> None:
    api.faults.add(faults.answer(400, json.dumps({"message": f"key {secret} is not valid"})))
    message = str(failure(client))
    assert secret not in message
    assert "is not valid" in message


# --- The upstream's clock ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("date", "skew"),
    [
        pytest.param("Sun, 01 Mar 2026 12:00:00 GMT", timedelta(), id="none"),
        pytest.param("Mon, 05 Apr 2027 12:00:00 GMT", timedelta(days=400), id="ahead"),
        pytest.param("Sun, 01 Mar 2026 09:00:00 GMT", timedelta(hours=-3), id="behind"),
        pytest.param("", None, id="empty"),
        pytest.param("yesterday", None, id="no date"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 -0100", None, id="out of range"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 GMT", None, id="never"),
    ],
)
def test_clock_skew_is_measured_with_each_response(api: Api, date: str, skew: timedelta | None) -> None:
    client = client_of(api, now=lambda: datetime(2026, 3, 1, 12, tzinfo=UTC))
    assert client.http.clock_skew is None
    api.faults.add(faults.answer(200, "{}", headers={"date": date}))
    client.send("GET", "/thing")
    assert client.http.clock_skew == skew
