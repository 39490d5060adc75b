"""One JSON request: every way in which it can end, and that none of them shows the token."""

from __future__ import annotations

import json
import select
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import pytest

from lifecycle.clients.http import MAX_ANSWER_BYTES, Answer, Credential, JsonClient
from lifecycle.domain.errors import ApiError, AuthError, ConfigError, ConflictError, ResponseError, TransientError
from tests.simulators import faults
from tests.simulators.faults import Fault
from tests.simulators.messages import Request, Response, json_response, text_response
from tests.simulators.serve import serve
from tests.simulators.upstream import Upstream

TOKEN = "tskey-0123456789abcdefghijklmnopqrstuvwxyz"
OTHER_TOKEN = "tskey-abcdefghijklmnopqrstuvwxyz0123456789"


class Desk(Upstream):
    """A service with one thing to say, to whoever has the token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = TOKEN

    def answer(self, request: Request, *, stale: bool) -> Response:
        if request.path != "/open" and request.headers.get("authorization") != f"Bearer {self.token}":
            return text_response("Unauthorized", 401)
        return json_response({"path": request.path})


def refused_is_auth(what: str, answer: Answer) -> ApiError | None:
    """Name a 401, and nothing else."""
    if answer.status == 401:
        return AuthError(f"the desk refused the token ({what})", upstream="Desk", status=401)
    return None


@pytest.fixture
def desk() -> Desk:
    return Desk()


def client_of(
    desk: Desk | str,
    *,
    read: Callable[[], str] = lambda: TOKEN,
    timeout_s: float = 10.0,
    observe: Callable[[str], None] = lambda _outcome: None,
) -> JsonClient:
    http_client = (
        httpx.Client(base_url=desk)
        if isinstance(desk, str)
        else httpx.Client(transport=httpx.WSGITransport(desk), base_url="http://desk")
    )
    return JsonClient(
        http_client,
        upstream="Desk",
        address="DESK_URL",
        credential=Credential(read, name="DESK_TOKEN"),
        timeout=timedelta(seconds=timeout_s),
        explain=refused_is_auth,
        observe=observe,
    )


@pytest.fixture(params=["in-process", "over-loopback"])
def client(request: pytest.FixtureRequest, desk: Desk) -> Iterator[JsonClient]:
    """A client of the desk, by either transport."""
    if request.param == "in-process":
        yield client_of(desk)
        return
    with serve(desk) as url:
        yield client_of(url, timeout_s=2.0)


def failure(client: JsonClient, path: str = "/thing") -> ApiError:
    with pytest.raises(ApiError) as raised:
        client.send("GET", path)
    return raised.value


# --- Statuses -----------------------------------------------------------------------------------------


def test_an_answer_is_parsed_and_given_whole(client: JsonClient, desk: Desk) -> None:
    answer = client.send("POST", "/thing", params={"page": "2"}, body={"name": "x"})
    assert (answer.status, answer.json) == (200, {"path": "/thing"})
    assert (desk.requests[0].query, desk.requests[0].body) == ("page=2", b'{"name": "x"}')


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *(pytest.param(status, TransientError, id=str(status)) for status in (429, 500, 502, 503, 504, 520, 524, 599)),
        *(pytest.param(status, ResponseError, id=str(status)) for status in (400, 404, 405, 409, 415, 422)),
        *(pytest.param(status, ResponseError, id=str(status)) for status in (301, 302, 303, 307, 308)),
        pytest.param(401, AuthError, id="401-as-explained"),
    ],
)
def test_each_status_is_an_error_of_its_kind(client: JsonClient, desk: Desk, status: int, kind: type[ApiError]) -> None:
    desk.faults.add(faults.answer(status, b"{}"), times=None)
    error = failure(client)
    assert type(error) is kind
    assert (error.status, error.upstream) == (status, "Desk")
    assert "GET /thing" in str(error)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_each_success_is_one(client: JsonClient, desk: Desk, status: int) -> None:
    desk.faults.add(faults.answer(status))
    assert client.send("GET", "/thing").status == status


def test_what_the_service_means_by_a_refusal_wins(desk: Desk) -> None:
    desk.faults.add(faults.answer(503))
    client = JsonClient(
        httpx.Client(transport=httpx.WSGITransport(desk), base_url="http://desk"),
        upstream="Desk",
        address="DESK_URL",
        credential=Credential(lambda: TOKEN, name="DESK_TOKEN"),
        timeout=timedelta(seconds=1),
        explain=lambda what, _answer: ConflictError(what, upstream="Desk"),
    )
    assert isinstance(failure(client), ConflictError)


def test_a_redirect_is_not_followed(client: JsonClient, desk: Desk) -> None:
    """The token would go along."""
    desk.faults.add(faults.answer(302, headers={"Location": "/elsewhere"}))
    error = failure(client)
    assert isinstance(error, ResponseError)
    assert "redirects" in str(error)
    assert [exchange.path for exchange in desk.requests] == ["/thing"]


# --- Retry-After --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        pytest.param("7", 7.0, id="seconds"),
        pytest.param(" 7 ", 7.0, id="blanks"),
        pytest.param("0.5", 0.5, id="fraction"),
        pytest.param("600", 600.0, id="longer-than-libraries-believe"),
        pytest.param("-5", 0.0, id="negative"),
        pytest.param("999999999999", 86_400.0, id="for-ever"),
        pytest.param("Wed, 21 Oct 2015 07:28:00 GMT", 0.0, id="date-in-the-past"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 GMT", 86_400.0, id="date-far-away"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 -0100", None, id="date-after-the-end-of-time"),
        pytest.param("soon", None, id="garbage"),
        pytest.param("nan", None, id="not-a-number"),
        pytest.param("", None, id="empty"),
        pytest.param(None, None, id="absent"),
    ],
)
def test_retry_after_is_read_in_all_its_forms(
    desk: Desk, status: int, header: str | None, seconds: float | None
) -> None:
    headers = {} if header is None else {"Retry-After": header}
    desk.faults.add(faults.answer(status, headers=headers))
    error = failure(client_of(desk))
    assert isinstance(error, TransientError)
    assert error.retry_after == (None if seconds is None else timedelta(seconds=seconds))
    assert error.throttled == (status == 429)


# --- Broken answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.drop(), id="lost-before"),
        pytest.param(faults.drop(committed=True), id="lost-after"),
        pytest.param(faults.refuse(), id="refused"),
        pytest.param(faults.hang(limit_s=5), id="hanging"),
        pytest.param(faults.hang(committed=True, limit_s=5), id="hanging-after"),
        pytest.param(faults.truncate(), id="truncated-body"),
        pytest.param(faults.drip(interval_s=0.3, limit_s=5), id="slow-drip"),
    ],
)
def test_an_answer_that_does_not_come_whole_is_worth_another_try(client: JsonClient, desk: Desk, fault: Fault) -> None:
    desk.faults.add(fault)
    error = failure(client)
    assert isinstance(error, TransientError)
    assert (error.status, error.retry_after, error.throttled) == (None, None, False)
    assert client.send("GET", "/thing").json == {"path": "/thing"}


def dripping_head() -> Iterator[bytes]:
    """The head of an answer that never ends."""
    yield b"HTTP/1.1 200 OK\r\nX-Slow: "
    while True:
        yield b"s"


@pytest.fixture
def dripping_server() -> Iterator[tuple[str, Event]]:
    """A server that sends its answer's head byte by byte, and the event that its client hung up."""
    hung_up = Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve_one() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.recv(65536)
                for piece in dripping_head():
                    connection.sendall(piece)
                    # Far more often than a time-out for each read would notice.
                    if select.select([connection], [], [], 0.01)[0]:
                        break
            hung_up.set()

        Thread(target=serve_one, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", hung_up


def test_a_head_that_drips_is_given_up_in_time(dripping_server: tuple[str, Event]) -> None:
    """Each read is quick; all together would last for ever."""
    url, hung_up = dripping_server
    with pytest.raises(TransientError, match="did not answer GET /thing within"):
        client_of(url, timeout_s=0.3).send("GET", "/thing")
    assert hung_up.wait(60)


def test_only_the_members_that_are_asked_for_are_kept(client: JsonClient, desk: Desk) -> None:
    """At any depth: what nobody reads takes no room, and a secret among it goes nowhere."""
    said = {"nodes": [{"id": 1, "key": "s3cr3t", "user": {"id": 2, "email": "a@example.com"}}], "more": {"id": 3}}
    desk.faults.add(faults.answer(200, json.dumps(said)))
    kept = client.send("GET", "/thing", members={"nodes", "id", "user"}).json
    assert kept == {"nodes": [{"id": 1, "user": {"id": 2}}]}


def test_nobody_at_the_address_is_told_with_the_address(desk: Desk) -> None:
    with serve(desk) as url:
        pass
    error = failure(client_of(url))
    assert isinstance(error, TransientError)
    assert url in str(error)
    assert "DESK_URL" in str(error)
    assert "Connection refused" in str(error)


def test_an_answer_beyond_measure_is_given_up(client: JsonClient, desk: Desk) -> None:
    desk.faults.add(faults.oversize(MAX_ANSWER_BYTES + 1))
    error = failure(client)
    assert isinstance(error, (ResponseError, TransientError))
    assert str(MAX_ANSWER_BYTES >> 20) in str(error) or "did not answer" in str(error)


def test_a_list_of_twenty_thousand_nodes_is_taken(desk: Desk) -> None:
    size = 20_000 * 1_250
    desk.faults.add(faults.oversize(size))
    assert len(client_of(desk).send("GET", "/thing").text) == size


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.garbage(), id="half-a-document"),
        pytest.param(faults.html(200), id="html"),
        pytest.param(faults.answer(200, b'{"path": 1}', content_type="text/plain"), id="json-by-another-name"),
        pytest.param(faults.answer(200, b'{"path": 1}', content_type=""), id="no-content-type"),
        pytest.param(faults.answer(200, b""), id="empty"),
        pytest.param(faults.answer(200, b"[" * 100_000), id="deeper-than-the-parser"),
        pytest.param(faults.answer(200, b"\xff\xfe\x00"), id="no-text"),
    ],
)
def test_what_is_no_json_is_no_value(client: JsonClient, desk: Desk, fault: Fault) -> None:
    desk.faults.add(fault)
    assert client.send("GET", "/thing").json is None


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "application/problem+json", "Application/OpenAPI+JSON"],
)
def test_json_by_any_of_its_names_is_parsed(desk: Desk, content_type: str) -> None:
    desk.faults.add(faults.answer(200, b'{"path": 1}', content_type=content_type))
    assert client_of(desk).send("GET", "/thing").json == {"path": 1}


# --- The token ----------------------------------------------------------------------------------------


def test_a_request_without_authorization_bears_no_token(desk: Desk) -> None:
    read: list[str] = []
    client = client_of(desk, read=lambda: read.append("read") or TOKEN)  # type: ignore[func-returns-value]
    desk.token = "nobody has it"
    assert client.send("GET", "/open", authorized=False).status == 200
    assert read == []


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    return path


def test_a_refused_token_is_read_again_and_the_request_sent_once_more(desk: Desk, token_file: Path) -> None:
    client = client_of(desk, read=token_file.read_text)
    assert client.send("GET", "/thing").status == 200
    desk.token = OTHER_TOKEN
    token_file.write_text(OTHER_TOKEN)
    assert client.send("POST", "/thing").status == 200
    assert [exchange.status for exchange in desk.requests] == [200, 401, 200]


def test_the_same_token_is_not_shown_twice(desk: Desk, token_file: Path) -> None:
    client = client_of(desk, read=token_file.read_text)
    desk.token = OTHER_TOKEN
    assert isinstance(failure(client), AuthError)
    assert [exchange.status for exchange in desk.requests] == [401]
    assert isinstance(failure(client), AuthError)
    assert [exchange.status for exchange in desk.requests] == [401, 401]


def test_a_renewed_token_that_is_refused_too_is_the_end(desk: Desk, token_file: Path) -> None:
    client = client_of(desk, read=token_file.read_text)
    assert client.send("GET", "/thing").status == 200
    desk.token = "a third one"
    token_file.write_text(OTHER_TOKEN)
    assert isinstance(failure(client), AuthError)
    assert [exchange.status for exchange in desk.requests] == [200, 401, 401]


def test_a_token_file_that_cannot_be_read_any_more_is_the_services_failure(desk: Desk) -> None:
    """Settings were fine at the start: a Secret that is being remounted must end no `dns-watch`."""
    answers: list[str | ConfigError] = [TOKEN, ConfigError("DESK_TOKEN_FILE: the file cannot be read"), OTHER_TOKEN]

    def read() -> str:
        answer = answers.pop(0)
        if isinstance(answer, ConfigError):
            raise answer
        return answer

    client = client_of(desk, read=read)
    desk.token = OTHER_TOKEN
    error = failure(client)
    assert isinstance(error, AuthError)
    assert "DESK_TOKEN_FILE" in str(error)
    assert client.send("GET", "/thing").status == 200


def test_a_token_that_cannot_be_read_at_first_is_the_services_failure(desk: Desk) -> None:
    def read() -> str:
        raise ConfigError("DESK_TOKEN_FILE: the file cannot be read")

    error = failure(client_of(desk, read=read))
    assert isinstance(error, AuthError)
    assert desk.requests == []


# --- What shows ---------------------------------------------------------------------------------------


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and all that led to it, also what was hidden with `from None`."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.drop(), id="lost"),
        pytest.param(faults.refuse(), id="refused"),
        pytest.param(faults.hang(limit_s=5), id="hanging"),
        pytest.param(faults.truncate(), id="truncated-body"),
        pytest.param(faults.oversize(MAX_ANSWER_BYTES + 1), id="oversized"),
        pytest.param(faults.answer(401, TOKEN), id="refused-with-the-token-in-the-body"),
        pytest.param(faults.answer(500, TOKEN), id="trouble-with-the-token-in-the-body"),
        pytest.param(faults.answer(302, headers={"Location": f"/?token={TOKEN}"}), id="redirect-with-the-token"),
        pytest.param(faults.answer(429, TOKEN, headers={"Retry-After": TOKEN}), id="throttled-with-the-token"),
    ],
)
def test_no_error_shows_the_token(client: JsonClient, desk: Desk, fault: Fault) -> None:
    desk.faults.add(fault, times=None)
    error = failure(client)
    told = [text for link in chain(error) for text in (str(link), repr(link), repr(vars(link)))]
    told += traceback.format_exception(error)
    assert not [text for text in told if TOKEN in text]


def test_a_credential_shows_its_name_only() -> None:
    credential = Credential(lambda: TOKEN, name="DESK_TOKEN")
    assert credential.value == TOKEN
    assert repr(credential) == "Credential(DESK_TOKEN)"


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
def test_every_request_is_counted_by_its_outcome(desk: Desk, fault: Fault | None, outcome: str) -> None:
    outcomes: list[str] = []
    client = client_of(desk, observe=outcomes.append)
    if fault is None:
        client.send("GET", "/thing")
    else:
        desk.faults.add(fault)
        failure(client)
    assert outcomes == [outcome]


def test_a_renewed_request_is_two_requests(desk: Desk) -> None:
    tokens = [OTHER_TOKEN, TOKEN]
    outcomes: list[str] = []
    client_of(desk, read=lambda: tokens.pop(0), observe=outcomes.append).send("GET", "/thing")
    assert outcomes == ["refused", "ok"]


def test_the_bodies_that_were_sent_are_json(desk: Desk) -> None:
    body: Any = {"comment": "Zürich \u2028", "proxied": False, "ttl": 60, "tags": []}
    client_of(desk).send("POST", "/thing", body=body)
    assert json.loads(desk.requests[0].body) == body
