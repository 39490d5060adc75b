"""Test that a fault has the same effect on a client that calls the simulator directly as on one that uses HTTP.

There are two exceptions. `drip` sends the body slowly over HTTP, but is a time-out if the simulator is called directly.
`refuse` resets an open connection over HTTP, but otherwise no connection is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.simulators import faults
from tests.simulators.memory import memory_transport
from tests.simulators.messages import Request, Response, json_response
from tests.simulators.serve import serve
from tests.simulators.upstream import Upstream


class Counter(Upstream):
    """A server that counts POST requests, and returns the count."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.previous_count = 0

    def answer(self, request: Request, *, from_previous_state: bool) -> Response:
        if request.method == "POST":
            self.previous_count, self.count = self.count, self.count + 1
        count = self.previous_count if from_previous_state else self.count
        return json_response({"count": count, "path": request.path})


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture(params=["in-process", "loopback"])
def client(request: pytest.FixtureRequest, counter: Counter) -> Iterator[httpx.Client]:
    if request.param == "in-process":
        yield httpx.Client(transport=memory_transport(counter.handle), base_url="http://counter.test")
        return
    with serve(counter) as url, httpx.Client(base_url=url, trust_env=False) as client:
        yield client


@pytest.fixture(autouse=True)
def _nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Check that nothing is printed, because a fault is not an error of the simulator."""
    yield
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        # Over HTTP, the connection is already open and is reset.
        pytest.param(faults.refuse(), (httpx.ConnectError, httpx.ReadError), id="refuse"),
        pytest.param(faults.drop(), httpx.ReadError, id="drop"),
        pytest.param(faults.drop(after_execution=True), httpx.ReadError, id="drop-after-execution"),
        pytest.param(faults.hang(), httpx.ReadTimeout, id="hang"),
        pytest.param(faults.hang(after_execution=True), httpx.ReadTimeout, id="hang-after-execution"),
        pytest.param(faults.truncate(), httpx.RemoteProtocolError, id="truncate"),
    ],
)
def test_fault_breaks_the_connection(
    counter: Counter, client: httpx.Client, fault: faults.Fault, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    counter.faults.add(fault)
    with pytest.raises(error):
        client.post("/", timeout=httpx.Timeout(None, read=0.2 if fault.kind is faults.Kind.HANG else None))
    # End the request that hangs in the server.
    counter.faults.release()
    assert counter.count == int(fault.after_execution)
    assert client.get("/").status_code == 200
    assert counter.faults.pending == 0


@pytest.mark.parametrize(
    ("fault", "status", "content_type"),
    [
        pytest.param(faults.html(503), 503, "text/html; charset=UTF-8", id="html"),
        pytest.param(faults.malformed_json(), 200, "application/json", id="malformed-JSON"),
        pytest.param(faults.wrong_content_type(), 200, "text/html; charset=UTF-8", id="wrong-content-type"),
        pytest.param(faults.too_many_requests(30), 429, "application/json", id="429"),
        pytest.param(faults.oversize(300_000), 200, "application/json", id="oversize"),
    ],
)
def test_fault_replaces_the_response(
    counter: Counter, client: httpx.Client, fault: faults.Fault, status: int, content_type: str
) -> None:
    counter.faults.add(fault)
    response = client.post("/")
    assert (response.status_code, response.headers["content-type"]) == (status, content_type)
    assert len(response.content) == (fault.size or len(fault.body))
    assert response.headers.get("retry-after") == fault.headers.get("retry-after")
    assert counter.count == 0


def test_stale_response_has_the_state_before_the_last_change(counter: Counter, client: httpx.Client) -> None:
    client.post("/")
    counter.faults.add(faults.stale(), method="GET")
    assert [client.get("/").json()["count"] for _ in range(2)] == [0, 1]


def test_slow_body_arrives_over_http_and_is_a_time_out_if_called_directly(counter: Counter) -> None:
    counter.faults.add(faults.drip(interval_s=0.001, limit_s=0.02), times=2)
    with serve(counter) as url:
        assert httpx.get(url, trust_env=False).json()["count"] == 0
    with pytest.raises(httpx.ReadTimeout):
        httpx.Client(transport=memory_transport(counter.handle)).get("http://counter.test/")


def test_server_can_be_closed_while_a_request_hangs(counter: Counter) -> None:
    counter.faults.add(faults.hang())
    with pytest.raises(httpx.ReadTimeout), serve(counter) as url:
        httpx.get(url, timeout=httpx.Timeout(None, read=0.05), trust_env=False)


def test_fault_affects_only_the_selected_requests(counter: Counter, client: httpx.Client) -> None:
    counter.faults.add(faults.html(503), method="GET", path=r"[?&]page=2", times=2, after=1)
    assert [client.get("/", params={"page": page}).status_code for page in (1, 2, 2, 2, 2)] == [200, 200, 503, 503, 200]
    assert client.post("/", params={"page": 2}).status_code == 200
    counter.faults.add(faults.html(), times=None)
    assert {client.get("/").status_code for _ in range(3)} == {502}
    counter.faults.clear()
    assert client.get("/").status_code == 200


def test_requests_are_recorded(counter: Counter, client: httpx.Client) -> None:
    """A request is recorded even if its response is lost."""
    client.get("/a b", params={"name": "a"})
    counter.faults.add(faults.drop(after_execution=True))
    with pytest.raises(httpx.ReadError):
        client.post("/", content=b"text")
    read, write = counter.requests
    assert (read.method, read.path, read.query, read.status) == ("GET", "/a b", "name=a", 200)
    assert json.loads(read.response_body) == {"count": 0, "path": "/a b"}
    assert (write.is_write, write.body, write.status) == (True, b"text", None)
    assert json.loads(write.response_body)["count"] == 1
    assert counter.writes == [write]
    counter.keep_bodies = False
    response = client.get("/")
    last = counter.requests[-1]
    assert (last.body, last.response_body, last.size) == (b"", b"", len(response.content))
