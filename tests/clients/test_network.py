"""Test with real sockets that one time budget covers name resolution, all addresses, TLS, sending and reading."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from lifecycle.clients.transport import open_http
from lifecycle.clients.trust import private_trust, public_trust
from lifecycle.domain.errors import TransientError
from lifecycle.runtime.deadline import remaining_s, time_budget
from tests.clients import servers
from tests.clients.servers import API, StaticApi, send, send_nothing, serve_connection
from tests.process.cluster import Authority
from tests.simulators.serve import serve
from tests.threads import refused_threads

BUDGET_S = 0.4
# Every request must fail within this time. With a separate time-out for each step, requests would take longer.
MAX_DURATION_S = 3.0

Resolver = Callable[..., list[Any]]


def failure(url: str, **options: Any) -> TransientError:
    """Return the error of a request with a short time budget, which has to fail within MAX_DURATION_S."""
    started = time.monotonic()
    error = servers.failure(url, **({"timeout_s": BUDGET_S} | options))
    assert time.monotonic() - started < MAX_DURATION_S
    assert type(error) is TransientError
    return error


# --- Budgets -------------------------------------------------------------------------------------------


def test_remaining_time_needs_a_budget() -> None:
    with pytest.raises(LookupError):
        remaining_s()


def test_used_up_budget_is_a_timeout() -> None:
    with time_budget(0.0), pytest.raises(TimeoutError):
        remaining_s()


def test_budget_can_be_longer_than_a_wait_of_the_system() -> None:
    """HTTP_TIMEOUT can be 100 years, but a socket's time-out must be shorter than 25 days."""
    with serve(StaticApi()) as url:
        assert send(url.replace("127.0.0.1", "localhost"), timeout_s=4 * 36_500 * 86_400.0) == {"ok": True}


def test_refused_thread_is_a_transient_error() -> None:
    with refused_threads():
        assert "thread" in str(failure("http://localhost:1"))


def test_inner_budget_does_not_extend_the_outer_one() -> None:
    with time_budget(1.0):
        with time_budget(60.0):
            assert remaining_s() <= 1.0
        with time_budget(0.5):
            assert remaining_s() <= 0.5
        assert 0.5 < remaining_s() <= 1.0


def test_one_budget_covers_several_requests() -> None:
    """With a budget for each request, the 100 requests would take 10 seconds."""
    with serve(StaticApi(delay_s=0.1)) as url:
        started = time.monotonic()
        with suppress(TransientError), time_budget(0.35):
            for _ in range(100):
                send(url)
        assert time.monotonic() - started < MAX_DURATION_S


# --- Name resolution -----------------------------------------------------------------------------------


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@pytest.fixture
def resolve_to(monkeypatch: pytest.MonkeyPatch) -> Callable[[Resolver], None]:
    """A function that replaces the resolver of the C library."""
    return lambda resolver: monkeypatch.setattr(socket, "getaddrinfo", resolver)


def addresses(*hosts: str) -> Resolver:
    """Return a resolver that knows only api.example, a host with these addresses."""

    def look_up(host: str, port: int, *_args: Any, **_options: Any) -> list[Any]:
        results: list[Any] = []
        for address in hosts if host == "api.example" else [host]:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            results.append((family, socket.SOCK_STREAM, 6, "", (address, port)))
        return results

    return look_up


def unknown_name(*_args: Any, **_options: Any) -> list[Any]:
    """Fail as the resolver of the C library does for a name that does not exist."""
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_hanging_resolver_is_reported(resolve_to: Callable[[Resolver], None]) -> None:
    ended = Event()
    resolve_to(lambda *_args, **_options: [ended.wait()])
    error = failure("http://api.example")
    assert "api.example" in str(error)
    assert "DNS" in str(error)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "resolve"]
    assert thread.daemon, "the thread would keep the process running"
    ended.set()


def test_unknown_name_is_reported_with_the_setting(resolve_to: Callable[[Resolver], None]) -> None:
    resolve_to(unknown_name)
    error = failure("http://api.example")
    assert all(text in str(error) for text in ("api.example", "Name or service not known", "API_URL", "DNS"))


def test_error_while_an_earlier_error_is_handled_has_its_own_reason(
    resolve_to: Callable[[Resolver], None], closed_port: int
) -> None:
    """Python links the two errors, but the reason of the earlier error must not be reported again."""
    resolve_to(unknown_name)
    try:
        send("http://api.example")
    except TransientError:
        resolve_to(addresses("127.0.0.1"))
        error = failure(f"http://api.example:{closed_port}")
    assert "DNS" not in str(error)
    assert all(text in str(error) for text in ("Connection refused", "http://api.example", "API_URL"))


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_host_can_be_an_ip_address(host: str) -> None:
    address = host.strip("[]")
    with serve(StaticApi(), host=address) as url:
        assert send(url.replace(address, host)) == {"ok": True}


# --- Addresses -----------------------------------------------------------------------------------------


@contextmanager
def unresponsive_port(port: int = 0) -> Iterator[int]:
    """Yield a port of ::1 that drops connection attempts, because its backlog is full."""
    with socket.create_server(("::1", port), family=socket.AF_INET6, backlog=0) as listener, ExitStack() as stack:
        for _ in range(8):
            filler = stack.enter_context(socket.socket(socket.AF_INET6))
            filler.settimeout(0.05)
            with suppress(TimeoutError):
                filler.connect(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.mark.parametrize("others", [1, 3])
@pytest.mark.parametrize("drops_packets", [False, True], ids=["refuse-connections", "drop-packets"])
def test_next_address_is_used_if_others_fail(
    drops_packets: bool, others: int, resolve_to: Callable[[Resolver], None]
) -> None:
    resolve_to(addresses(*["::1"] * others, "127.0.0.1"))
    with serve(StaticApi()) as url, ExitStack() as stack:
        port = int(url.rpartition(":")[2])
        if drops_packets:
            stack.enter_context(unresponsive_port(port))
        assert send(f"http://api.example:{port}", timeout_s=1.5) == {"ok": True}


def test_error_if_no_address_accepts_in_time(resolve_to: Callable[[Resolver], None]) -> None:
    resolve_to(addresses("::1", "::1"))
    with unresponsive_port() as port:
        error = failure(f"http://api.example:{port}")
    assert all(text in str(error) for text in ("http://api.example", "0.4 s", "API_URL"))


# --- Slow peers ----------------------------------------------------------------------------------------


SLOW_BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + b"s" * 10_000


def drip(connection: socket.socket, data: bytes) -> None:
    """Send byte by byte, so that no single read of the client reaches a time-out."""
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("scheme", "handle"),
    [
        pytest.param("http", send_nothing, id="no-response"),
        pytest.param("http", lambda peer: drip(peer, b"HTTP/1.1 200 OK\r\nX: " + b"s" * 10_000), id="slow-headers"),
        pytest.param("http", lambda peer: drip(peer, SLOW_BODY), id="slow-body"),
        pytest.param(
            "http", lambda peer: drip(peer, b"HTTP/1.1 100 Continue\r\n\r\n" * 1000), id="many-interim-responses"
        ),
        pytest.param("https", send_nothing, id="no-tls-handshake"),
        # A TLS record of 16 KiB that arrives byte by byte.
        pytest.param(
            "https", lambda peer: drip(peer, b"\x16\x03\x03\x40\x00" + b"\x02" * 10_000), id="slow-tls-handshake"
        ),
    ],
)
def test_slow_response_fails_when_the_budget_ends(scheme: str, handle: Callable[[socket.socket], object]) -> None:
    with serve_connection(handle) as address:
        assert "0.4 s" in str(failure(f"{scheme}://{address}"))


def test_request_that_is_not_read_fails_when_the_budget_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        error = failure(f"http://127.0.0.1:{listener.getsockname()[1]}", method="POST", body="x" * 20_000_000)
    assert "0.4 s" in str(error)


def test_slow_body_over_tls_fails_when_the_budget_ends(tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    def handle(connection: socket.socket) -> None:
        with authority.server.wrap_socket(connection, server_side=True) as secured:
            secured.recv(65536)
            drip(secured, SLOW_BODY)

    with serve_connection(handle) as address:
        error = failure(f"https://{address}", trust=private_trust(authority.certificate), timeout_s=1.0)
    assert "1 s" in str(error)


def test_time_for_a_response_can_exceed_the_time_for_a_connection() -> None:
    """With `timeout_factor=4`, a response may take four times as long as a TCP connection or a TLS handshake."""
    options = {"upstream": replace(API, timeout_factor=4), "timeout_s": 0.1}
    # The server sends nothing, so https fails in the TLS handshake, and http while it waits for the response.
    for scheme, expected in (("https", "within 0.1 s"), ("http", "within 0.4 s")):
        with serve_connection(send_nothing) as address:
            assert expected in str(failure(f"{scheme}://{address}", **options))
    with unresponsive_port() as port:
        error = failure(f"http://[::1]:{port}", **options)
    assert "within 0.1 s" in str(error)
    assert not error.was_sent


# --- Connections ---------------------------------------------------------------------------------------


def test_connection_is_reused_until_the_server_closes_it() -> None:
    # For each request, the number of the connection on which it arrived.
    requests: list[int] = []
    closed = Event()

    def serve_two_requests(connection: socket.socket, number: int) -> None:
        with connection:
            while requests.count(number) < 2 and connection.recv(65536):
                requests.append(number)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        closed.set()

    def accept_connections(listener: socket.socket) -> None:
        with suppress(OSError):
            for number in count():
                serve_two_requests(listener.accept()[0], number)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        Thread(target=accept_connections, args=(listener,), daemon=True).start()
        with (
            open_http(f"http://127.0.0.1:{listener.getsockname()[1]}", trust=public_trust()) as http,
            time_budget(10.0),
        ):
            http.get("/thing")
            http.get("/thing")
            assert closed.wait(30)
            http.get("/thing")
        listener.shutdown(socket.SHUT_RDWR)
    assert requests == [0, 0, 1]
