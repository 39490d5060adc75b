"""Test the health port of dns-watch: its responses, metrics and addresses, and how it handles misbehaving clients.

/livez reports whether dns-watch makes progress, /readyz whether the record is correct, and /nodez the state of the
pod's node. The node is "superseded" if a later pod owns the name.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import lifecycle
from lifecycle.clients.kubernetes import access
from lifecycle.dns_watch.state import KnownNode, LossKind
from lifecycle.dns_watch.status import Status
from lifecycle.domain.errors import TransientError
from lifecycle.domain.model import IpAddress
from lifecycle.health.server import ENDPOINTS, serve
from tests.builders import NOW, addresses
from tests.dns_watch.pods import Pod
from tests.real.programs import eventually, free_ports
from tests.simulators.faults import html, too_many_requests
from tests.threads import refused_threads
from tests.world import Clock, Interface, World, event_names

VERIFY_INTERVAL_S = 300.0

OUTAGE = TransientError("Cloudflare did not respond", upstream="Cloudflare")
RATE_LIMIT = TransientError("Cloudflare returned 429", upstream="Cloudflare", status=429)

# The Accept header of Prometheus.
PROMETHEUS_ACCEPT = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)

# Each metric, with the possible values of its labels. A label with None is a version, which can have any value.
METRICS: Mapping[str, Mapping[str, frozenset[str] | None]] = {
    "node_registered": {},
    "node_lost": {},
    "node_superseded": {},
    "node_restart_helps": {},
    "poll_interval_seconds": {},
    "record_in_sync": {},
    "pass_duration_seconds": {},
    "passes": {"outcome": frozenset({"finished", "failed"})},
    "requests": {
        "upstream": frozenset({"Headscale", "Cloudflare"}),
        "outcome": frozenset({"ok", "no_answer", "throttled", "server_error", "refused"}),
    },
    "retries": {"upstream": frozenset({"Headscale", "Cloudflare", "Kubernetes"})},
    "rate_limit_wait_seconds": {"upstream": frozenset({"Headscale", "Cloudflare", "Kubernetes"})},
    "last_success_timestamp_seconds": {"upstream": frozenset({"Headscale", "Cloudflare"})},
    "node_expiration_timestamp_seconds": {},
    "api_key_expiration_timestamp_seconds": {},
    "log_lines_dropped": {},
    "build": {"version": None, "headscale": None},
}


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def status(clock: Clock) -> Status:
    """Return the status of a process that has just started."""
    return Status(
        longest_interval=timedelta(seconds=VERIFY_INTERVAL_S),
        verify_interval=timedelta(seconds=VERIFY_INTERVAL_S),
        monotonic=clock.monotonic,
        clock=lambda: clock.now().timestamp(),
    )


def set_status(status: Status, **changes: Any) -> None:
    """Change what the health port reports: fields of `Status`, of `State` and of the values in `State`."""
    state = status.state
    if "lost" in changes:
        changes["heal"] = replace(state.heal, lost=LossKind(changes.pop("lost")))
    if "node_id" in changes:
        changes["node"] = KnownNode(changes.pop("node_id"), None)
    names = {"reason", "addresses", "verified_at_s", "last_failure"}
    records = {name: changes.pop(name) for name in names & changes.keys()}
    status.restart_helps = changes.pop("restart_helps", status.restart_helps)
    status.state = replace(state, records=replace(state.records, **records), **changes)


def set_in_sync(status: Status) -> None:
    """Report that the record was read now, and is correct."""
    set_status(status, reason="", addresses=addresses("100.64.0.1"), verified_at_s=status.monotonic())


StartServer = Callable[..., int]


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Return a function that serves a status on a free port, and returns the port."""
    with ExitStack() as stack:

        def start(status: Status, address: str | None = "127.0.0.1") -> int:
            (port,) = free_ports(1)
            stack.callback(serve(status, address=address, port=port))
            return port

        yield start


@pytest.fixture
def port(start_server: StartServer, status: Status) -> int:
    """Serve the status, and return the port."""
    return start_server(status)


def get(port: int, path: str, *, accept: str = "", host: str = "127.0.0.1") -> httpx.Response:
    with httpx.Client(trust_env=False) as client:
        return client.get(f"http://{host}:{port}{path}", headers={"Accept": accept} if accept else {}, timeout=30)


# --- Responses -----------------------------------------------------------------------------------


def test_a_new_process_is_alive_and_not_ready(port: int) -> None:
    assert (get(port, "/livez").status_code, get(port, "/livez").json()) == (200, {"alive": True})
    assert (get(port, "/readyz").status_code, get(port, "/readyz").json()) == (
        503,
        {"ready": False, "reason": "no pass has finished yet", "addresses": []},
    )
    assert (get(port, "/nodez").status_code, get(port, "/nodez").json()) == (
        200,
        {"state": "waiting", "node_id": None, "superseded_by": None, "restart_helps": False},
    )


def test_readyz_fails_if_the_record_is_wrong_or_was_read_too_long_ago(clock: Clock, status: Status, port: int) -> None:
    """The body of the response contains the reason. A failed request alone changes nothing."""
    set_in_sync(status)
    status.count_retry(OUTAGE, 0.5)
    assert (get(port, "/readyz").status_code, get(port, "/readyz").json()) == (
        200,
        {"ready": True, "reason": "", "addresses": ["100.64.0.1"]},
    )
    set_status(status, last_failure=str(OUTAGE))
    clock.sleep(3 * VERIFY_INTERVAL_S)
    assert get(port, "/readyz").status_code == 200
    clock.sleep(1)
    answer = get(port, "/readyz")
    assert answer.status_code == 503
    assert "too long ago" in answer.json()["reason"]
    assert str(OUTAGE) in answer.json()["reason"]
    set_in_sync(status)
    set_status(status, reason="a foreign record is in the way")
    answer = get(port, "/readyz")
    assert (answer.status_code, answer.json()["reason"]) == (503, "a foreign record is in the way")


@pytest.mark.parametrize(("path", "key"), [("/livez", "alive"), ("/readyz", "ready")])
@pytest.mark.parametrize("reads", [1, 2])
def test_status_code_matches_the_body_if_the_state_changes_meanwhile(
    start_server: StartServer, clock: Clock, path: str, key: str, reads: int
) -> None:
    clock.sleep(4 * VERIFY_INTERVAL_S)
    # The clock jumps after it was read this often.
    times = iter([0.0] * (reads + 1))
    interval = timedelta(seconds=VERIFY_INTERVAL_S)
    status = Status(interval, interval, monotonic=lambda: next(times, clock.monotonic()))
    set_status(status, reason="", verified_at_s=0.0)

    answer = get(start_server(status), path)

    body = answer.json()
    assert body[key] is (answer.status_code == 200)
    assert body[key] is not bool(body.get("reason", not body[key]))


@pytest.mark.parametrize(
    ("change", "expected_status", "state"),
    [
        pytest.param({"is_registered": True, "node_id": "1"}, 200, "registered", id="registered"),
        pytest.param({"superseded_by": "2", "is_registered": True}, 200, "superseded", id="superseded"),
        pytest.param({"superseded_by": "2", "lost": "gone"}, 200, "superseded", id="gone and superseded"),
        pytest.param({"lost": "gone"}, 200, "gone", id="gone"),
        pytest.param({"lost": "expired"}, 200, "expired", id="expired"),
        pytest.param({"lost": "gone", "restart_helps": True}, 503, "gone", id="gone with a usable key"),
        pytest.param({"lost": "expired", "restart_helps": True}, 503, "expired", id="expired with a usable key"),
    ],
)
def test_nodez_fails_only_if_a_restart_helps(
    status: Status, port: int, change: dict[str, Any], expected_status: int, state: str
) -> None:
    """A restart of the tailscale container helps if the node is gone or expired, and the key file has a usable key."""
    set_status(status, **change)
    answer = get(port, "/nodez")
    assert (answer.status_code, answer.json()["state"]) == (expected_status, state)


class TestLivez:
    """Tests of /livez, which fails after three times the longest interval without progress.

    A pass is one iteration of the loop of dns-watch. After each pass, dns-watch waits.
    """

    @pytest.mark.parametrize(
        ("wait_s", "pass_began_after_s", "allowed_s"),
        [
            pytest.param(None, 0, 3 * VERIFY_INTERVAL_S, id="endless pass"),
            # Headscale or Cloudflare requested a wait of a day.
            pytest.param(86_400, None, 86_400 + 3 * VERIFY_INTERVAL_S, id="long backoff"),
            # The VPN interface changed, so the next pass started before the end of the wait.
            pytest.param(86_400, 5, 3 * VERIFY_INTERVAL_S, id="endless pass after an interrupted wait"),
        ],
    )
    def test_livez_fails_after_too_long_without_progress(
        self,
        clock: Clock,
        status: Status,
        port: int,
        wait_s: float | None,
        pass_began_after_s: float | None,
        allowed_s: float,
    ) -> None:
        if wait_s is not None:
            status.pass_ended(wait_s, duration_s=0, failed=False)
        if pass_began_after_s is not None:
            clock.sleep(pass_began_after_s)
            status.pass_began()
        clock.sleep(allowed_s)
        assert get(port, "/livez").status_code == 200
        clock.sleep(1)
        assert (get(port, "/livez").status_code, get(port, "/livez").json()) == (503, {"alive": False})

    def test_failed_passes_are_progress(self, clock: Clock, status: Status, port: int) -> None:
        for _ in range(20):
            status.pass_began()
            clock.sleep(10)
            status.count_retry(OUTAGE, 0.5)
            status.pass_ended(300, duration_s=10, failed=True)
            clock.sleep(300)
            assert get(port, "/livez").status_code == 200

    def test_time_without_progress_counts_from_the_start_of_a_pass_or_the_end_of_a_wait(self, world: World) -> None:
        observed_s: list[float] = []

        class ObservedInterface(Interface):
            """An interface that records the status when it is read, which happens during each pass."""

            def __call__(self) -> tuple[IpAddress, ...] | None:
                observed_s.append(watch.status.no_progress_since_s)
                return super().__call__()

        watch = world.watch(ObservedInterface(None))
        for _ in range(3):
            watch.run_pass()
            assert watch.status.no_progress_since_s > world.clock.elapsed_s
            world.clock.sleep(0.5)
        assert observed_s == [0.0, 0.5, 1.0]


def test_response_to_an_unknown_path_lists_the_endpoints(port: int) -> None:
    answer = get(port, "/")
    assert answer.status_code == 404
    assert all(path in answer.text for path in ENDPOINTS)


def test_query_is_ignored(port: int) -> None:
    assert get(port, "/livez?verbose").json() == {"alive": True}


def test_response_to_a_head_request_has_no_body(port: int) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("HEAD", "/readyz")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (503, b"")
        assert int(answer.headers["Content-Length"]) > 0


def test_the_server_header_has_no_versions(port: int) -> None:
    assert get(port, "/livez").headers["Server"].strip() == "tailscale-lifecycle"


# --- Metrics ----------------------------------------------------------------------------------------


def families(port: int) -> dict[str, Metric]:
    """Return the program's metrics by their names, without the prefix."""
    prefix = "tailscale_lifecycle_"
    every_family = parse_text(get(port, "/metrics").text)
    return {family.name.removeprefix(prefix): family for family in every_family if family.name.startswith(prefix)}


def samples(port: int) -> dict[tuple[str, ...], float]:
    """Return the samples of the program's metrics by name and label values, the label `upstream` before `outcome`."""
    return {
        (
            sample.name.removeprefix("tailscale_lifecycle_"),
            *(value for _, value in sorted(sample.labels.items(), reverse=True)),
        ): sample.value
        for family in families(port).values()
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        pytest.param("", "text/plain; version=0.0.4; charset=utf-8", id="no header"),
        pytest.param("*/*", "text/plain; version=0.0.4; charset=utf-8", id="any type"),
        pytest.param("text/plain;version=0.0.4", "text/plain; version=0.0.4; charset=utf-8", id="text"),
        pytest.param(PROMETHEUS_ACCEPT, "application/openmetrics-text; version=1.0.0; charset=utf-8", id="Prometheus"),
        pytest.param("<<;;q=,", "text/plain; version=0.0.4; charset=utf-8", id="malformed"),
        pytest.param(
            'application/openmetrics-text;version="1.0.0"', "text/plain; version=0.0.4; charset=utf-8", id="quotes"
        ),
    ],
)
def test_format_of_the_metrics_depends_on_the_accept_header(port: int, accept: str, kind: str) -> None:
    answer = get(port, "/metrics", accept=accept)
    assert (answer.status_code, answer.headers["Content-Type"].partition("; escaping")[0]) == (200, kind)
    parse = parse_openmetrics if "openmetrics" in kind else parse_text
    assert "tailscale_lifecycle_node_registered" in {family.name for family in parse(answer.text)}


def test_metrics_are_known_and_have_a_type_and_a_help_text(status: Status, port: int) -> None:
    set_status(status, node_expires_at=NOW, api_key_expires_at=NOW)
    metrics = families(port)
    # In the plain text format, an info metric is a gauge with this suffix.
    assert {name.removesuffix("_info") for name in metrics} == set(METRICS)
    assert all(family.documentation.endswith(".") for family in metrics.values())
    assert all(family.type != "unknown" for family in metrics.values())


def test_counters_start_at_zero(status: Status, port: int) -> None:
    """In Prometheus, `increase()` does not count the first event of a counter that starts at 1."""
    metrics = samples(port)
    for upstream in ("Headscale", "Cloudflare", access.UPSTREAM):
        assert metrics["retries_total", upstream] == 0
        assert metrics["rate_limit_wait_seconds_total", upstream] == 0
    for upstream in ("Headscale", "Cloudflare"):
        assert metrics["last_success_timestamp_seconds", upstream] == 0
        for outcome in ("ok", "no_answer", "throttled", "server_error", "refused"):
            assert metrics["requests_total", upstream, outcome] == 0
    assert metrics["passes_total", "finished"] == metrics["passes_total", "failed"] == 0
    assert metrics["build_info", lifecycle.__version__, "unknown"] == 1
    assert ("api_key_expiration_timestamp_seconds",) not in metrics
    assert ("node_expiration_timestamp_seconds",) not in metrics


def test_metrics_have_the_values_of_the_status(clock: Clock, status: Status, port: int) -> None:
    status.count_request("Headscale", "ok")
    status.record_success("Headscale")
    status.count_request("Cloudflare", "throttled")
    status.count_retry(OUTAGE, 0.5)
    status.count_retry(RATE_LIMIT, 12.5)
    status.pass_ended(30, duration_s=0.25, failed=True)
    set_status(
        status,
        headscale_version="0.28.0",
        is_registered=True,
        node_expires_at=NOW + timedelta(days=30),
        api_key_expires_at=NOW + timedelta(days=90),
    )
    metrics = samples(port)
    assert metrics["requests_total", "Headscale", "ok"] == metrics["requests_total", "Cloudflare", "throttled"] == 1
    assert metrics["retries_total", "Cloudflare"] == 2
    assert metrics["rate_limit_wait_seconds_total", "Cloudflare"] == 12.5
    assert metrics["last_success_timestamp_seconds", "Headscale"] == NOW.timestamp()
    assert metrics["last_success_timestamp_seconds", "Cloudflare"] == 0
    assert (metrics["pass_duration_seconds_count",], metrics["pass_duration_seconds_sum",]) == (1, 0.25)
    assert metrics["build_info", lifecycle.__version__, "0.28.0"] == 1
    assert metrics["node_registered",] == 1
    assert metrics["node_expiration_timestamp_seconds",] == (NOW + timedelta(days=30)).timestamp()
    assert metrics["api_key_expiration_timestamp_seconds",] == (NOW + timedelta(days=90)).timestamp()


def test_process_metrics_have_their_standard_names(port: int) -> None:
    names_of_metrics = {family.name for family in parse_text(get(port, "/metrics").text)}
    assert {"process_start_time_seconds", "process_resident_memory_bytes", "process_open_fds"} <= names_of_metrics


def test_long_headscale_version_is_truncated(status: Status, port: int) -> None:
    set_status(status, headscale_version="0.28.0-" + "x" * 100_000)
    (family,) = (family for name, family in families(port).items() if name.startswith("build"))
    assert len(family.samples[0].labels["headscale"]) == 64


def test_metrics_have_known_labels(world: World, tmp_path: Path, start_server: StartServer) -> None:
    """The pod runs for hours, with failures of all kinds."""
    world.headscale.add_node("laptop", user="svc", registered_by="cli")
    pod = Pod(world, tmp_path / "pod", {"SELF_HEAL": "true", "MAX_RETRIES": "0"})
    pod.start()
    pod.run(60)
    for fault in (html(404), html(502), too_many_requests(7), too_many_requests()):
        for simulator in (world.headscale, world.cloudflare):
            simulator.faults.add(fault, times=5)
            pod.run(900)
    world.headscale.rotate_api_key()
    world.cloudflare.set_token()
    pod.run(900)
    world.headscale.delete_node(pod.node_id)
    pod.run(900)
    for name, family in families(start_server(pod.watch.status)).items():
        labels = METRICS[name.removesuffix("_info")]
        for sample in family.samples:
            assert sample.labels.keys() == labels.keys()
            for label, value in sample.labels.items():
                possible_values = labels[label]
                assert possible_values is None or value in possible_values


def test_html_page_does_not_count_as_a_successful_request(world: World, tmp_path: Path) -> None:
    """A proxy can send an HTML page with status 200."""
    pod = Pod(world, tmp_path / "pod")
    pod.start()
    pod.run(60)
    before = dict(pod.watch.status.succeeded_at)
    assert all(before.values())
    for simulator in (world.headscale, world.cloudflare):
        simulator.faults.add(html(200), times=None)
    pod.run(3600)
    assert pod.watch.status.succeeded_at == before


# --- Misbehaving clients ----------------------------------------------------------------------------


def serving_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


@pytest.mark.parametrize(
    "request_data",
    [
        pytest.param(b"", id="no data"),
        pytest.param(b"GET /metrics HTT", id="incomplete line"),
        pytest.param(b"GET /metrics HTTP/1.1\r\nX-A: 1\r\n", id="incomplete headers"),
        pytest.param(b"GET /metrics HTTP/1.1\r\n\r\n", id="response not read"),
    ],
)
def test_clients_that_send_nothing_more_do_not_block_others(
    world: World, tmp_path: Path, start_server: StartServer, request_data: bytes
) -> None:
    """With a hundred such clients, no pass of dns-watch fails, and the server uses at most 16 threads."""
    pod = Pod(world, tmp_path / "pod")
    pod.start()
    port = start_server(pod.watch.status)
    with ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            client.sendall(request_data)
        pod.run(60)
        assert pod.watch.status.passes["finished"] > 0
        assert pod.watch.status.passes["failed"] == 0
        for path in ("/livez", "/nodez", "/metrics"):
            assert get(port, path).status_code == 200
        eventually(lambda: len(serving_threads()) <= 16, "the oldest clients to be disconnected")
    eventually(lambda: not serving_threads(), "all clients to be disconnected")


def test_connection_resets_are_not_logged(port: int, capfd: pytest.CaptureFixture[str], events: list[Any]) -> None:
    for request_data in (b"", b"GET", b"GET /metrics HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            # With a linger time of 0, closing the socket resets the connection.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(request_data)
    eventually(lambda: not serving_threads(), "all clients to be disconnected")
    assert get(port, "/livez").status_code == 200
    assert capfd.readouterr() == ("", "")
    assert events == []


def test_server_continues_after_a_refused_thread(port: int) -> None:
    with refused_threads(), pytest.raises(httpx.TransportError):
        get(port, "/livez")
    assert get(port, "/livez").status_code == 200


def test_malformed_requests_are_not_logged(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    """The next request is served."""
    for request_data in (
        b"\0" * 1000,
        b"GET " + b"/" * 70_000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"A: b\r\n" * 500,
        b"\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            try:
                client.sendall(request_data)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except OSError:
                pass  # The server closed the connection.
    assert get(port, "/livez").status_code == 200
    assert capfd.readouterr() == ("", "")


def test_exception_in_a_request_reaches_the_exception_hook(
    status: Status, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server continues with other requests."""
    exceptions: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", exceptions.append)
    port = start_server(status)
    # The server expects a tuple, so it raises a TypeError.
    set_status(status, addresses=1)
    with pytest.raises(httpx.RemoteProtocolError):
        get(port, "/readyz")
    assert get(port, "/livez").status_code == 200
    eventually(lambda: len(exceptions) == 1, "the exception")
    assert exceptions[0].exc_type is TypeError


# --- Addresses and ports ----------------------------------------------------------------------------


def is_reachable(port: int, host: str) -> bool:
    try:
        socket.create_connection((host, port), timeout=30).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize(
    ("address", "ipv4", "ipv6"),
    [
        pytest.param(None, True, True, id="all addresses"),
        pytest.param("127.0.0.1", True, False, id="IPv4"),
        pytest.param("::1", False, True, id="IPv6"),
    ],
)
def test_server_listens_at_the_configured_address(
    status: Status, start_server: StartServer, address: str | None, ipv4: bool, ipv6: bool
) -> None:
    port = start_server(status, address)
    assert (is_reachable(port, "127.0.0.1"), is_reachable(port, "::1")) == (ipv4, ipv6)


def test_port_zero_disables_the_server(status: Status, events: list[Any]) -> None:
    before = threading.active_count()
    serve(status, address=None, port=0)()
    assert (threading.active_count(), events) == (before, [])


@pytest.mark.parametrize("address", [None, "127.0.0.1"])
def test_port_in_use_is_logged_as_an_error(status: Status, events: list[Any], address: str | None) -> None:
    """Another container of the pod can use the port. dns-watch then runs without a health port."""
    with socket.create_server(("127.0.0.1", 0)) as other_server:
        close = serve(status, address=address, port=other_server.getsockname()[1])
        close()
    (error,) = events
    assert (error["event"], error["log_level"]) == ("health_port.unavailable", "error")
    assert error["error"].startswith("Address already in use")
    assert "HEALTH_PORT" in error["advice"]


@pytest.mark.parametrize("address", ["192.0.2.1", "no such address", "300.1.1.1"])
def test_address_that_the_pod_does_not_have_is_logged_as_an_error(
    status: Status, events: list[Any], address: str
) -> None:
    serve(status, address=address, port=free_ports(1)[0])()
    assert event_names(events) == ["health_port.unavailable"]


def test_closed_port_can_be_used_again(status: Status) -> None:
    (port,) = free_ports(1)
    for _ in range(2):
        close = serve(status, address="127.0.0.1", port=port)
        assert get(port, "/livez").status_code == 200
        close()
        assert not is_reachable(port, "127.0.0.1")
