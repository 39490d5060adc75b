"""The health port on loopback: its responses, and clients that cannot harm the loop."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
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
from lifecycle.domain.model import IpAddress
from lifecycle.health.server import ENDPOINTS, serve
from tests.builders import NOW, addresses
from tests.dns_watch.pods import Pod
from tests.real.programs import eventually, free_ports
from tests.simulators.faults import html, too_many_requests
from tests.world import Clock, Interface, World, named, names

VERIFY_S = 300.0

PROMETHEUS_ACCEPTS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)

# Each metric and the possible values of its labels; None = a version.
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
    """The status of a process that has just started."""
    return Status(
        longest_interval=timedelta(seconds=VERIFY_S),
        verify_interval=timedelta(seconds=VERIFY_S),
        monotonic=clock.monotonic,
        clock=lambda: clock.now().timestamp(),
    )


def set_status(status: Status, **changes: Any) -> None:
    """Change fields of the status that the health port reports. The fields of its nested values are accepted, too."""
    state = status.state
    if "lost" in changes:
        changes["heal"] = replace(state.heal, lost=LossKind(changes.pop("lost")))
    if "node_id" in changes:
        changes["node"] = KnownNode(changes.pop("node_id"), None)
    records = {
        name: changes.pop(name) for name in ("in_sync", "reason", "addresses", "verified_at_s") if name in changes
    }
    status.restart_helps = changes.pop("restart_helps", status.restart_helps)
    status.state = replace(state, records=replace(state.records, **records), **changes)


Port = Callable[..., int]


@pytest.fixture
def served() -> Iterator[Port]:
    """Serve a status on a free port, and return the port."""
    with ExitStack() as stack:

        def start(status: Status, address: str | None = "127.0.0.1") -> int:
            (port,) = free_ports(1)
            stack.callback(serve(status, address=address, port=port))
            return port

        yield start


@pytest.fixture
def port(served: Port, status: Status) -> int:
    return served(status)


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


def test_readyz_fails_for_a_stale_or_outdated_record(clock: Clock, status: Status, port: int) -> None:
    """Its body contains the reason."""
    set_status(status, in_sync=True, reason="", addresses=addresses("100.64.0.1"), verified_at_s=status.monotonic())
    assert (get(port, "/readyz").status_code, get(port, "/readyz").json()) == (
        200,
        {"ready": True, "reason": "", "addresses": ["100.64.0.1"]},
    )
    clock.sleep(3 * VERIFY_S)
    assert get(port, "/readyz").status_code == 200
    clock.sleep(1)
    answer = get(port, "/readyz")
    assert answer.status_code == 503
    assert "too long ago" in answer.json()["reason"]
    set_status(status, in_sync=True, reason="", addresses=addresses("100.64.0.1"), verified_at_s=status.monotonic())
    set_status(status, in_sync=False, reason="a foreign record is in the way")
    answer = get(port, "/readyz")
    assert (answer.status_code, answer.json()["reason"]) == (503, "a foreign record is in the way")


def test_a_failed_request_does_not_make_a_record_unready(clock: Clock, status: Status, port: int) -> None:
    """Until the last successful read is too old."""
    set_status(status, in_sync=True, reason="", addresses=addresses("100.64.0.1"), verified_at_s=status.monotonic())
    status.failed("Cloudflare", throttled_s=0)
    assert get(port, "/readyz").status_code == 200
    clock.sleep(3 * VERIFY_S + 1)
    assert get(port, "/readyz").status_code == 503


@pytest.mark.parametrize(
    ("change", "expected_status", "state"),
    [
        pytest.param({}, 200, "waiting", id="waiting"),
        pytest.param({"is_registered": True, "node_id": "1"}, 200, "registered", id="registered"),
        pytest.param({"superseded_by": "2", "is_registered": True}, 200, "superseded", id="superseded"),
        pytest.param({"superseded_by": "2", "lost": "gone"}, 200, "superseded", id="gone and superseded"),
        pytest.param({"lost": "gone"}, 200, "gone", id="gone"),
        pytest.param({"lost": "expired"}, 200, "expired", id="expired"),
        pytest.param({"lost": "gone", "restart_helps": True}, 503, "gone", id="gone with a fresh key"),
        pytest.param({"lost": "expired", "restart_helps": True}, 503, "expired", id="expired with a fresh key"),
    ],
)
def test_nodez_fails_only_if_a_restart_helps(
    status: Status, port: int, change: dict[str, Any], expected_status: int, state: str
) -> None:
    set_status(status, **change)
    answer = get(port, "/nodez")
    assert (answer.status_code, answer.json()["state"]) == (expected_status, state)


class TestLivez:
    """It fails only without progress for three times the longest interval."""

    def test_an_endless_pass_is_not_alive(self, clock: Clock, status: Status, port: int) -> None:
        status.pass_began()
        clock.sleep(3 * VERIFY_S)
        assert get(port, "/livez").status_code == 200
        clock.sleep(1)
        assert (get(port, "/livez").status_code, get(port, "/livez").json()) == (503, {"alive": False})

    def test_a_long_backoff_is_alive(self, clock: Clock, status: Status, port: int) -> None:
        """An upstream requested a day of backoff."""
        status.pass_ended(86_400, duration_s=0, failed=False)
        clock.sleep(86_400 + 3 * VERIFY_S)
        assert get(port, "/livez").status_code == 200
        clock.sleep(1)
        assert get(port, "/livez").status_code == 503

    def test_an_endless_pass_after_an_interrupted_wait_is_not_alive(
        self, clock: Clock, status: Status, port: int
    ) -> None:
        """The interface changed, and the next pass started early."""
        status.pass_ended(86_400, duration_s=0, failed=False)
        clock.sleep(5)
        status.pass_began()
        clock.sleep(3 * VERIFY_S + 1)
        assert get(port, "/livez").status_code == 503

    def test_failed_passes_are_alive(self, clock: Clock, status: Status, port: int) -> None:
        for _ in range(20):
            status.pass_began()
            clock.sleep(10)
            status.failed("Cloudflare", throttled_s=0)
            status.pass_ended(300, duration_s=10, failed=True)
            clock.sleep(300)
            assert get(port, "/livez").status_code == 200

    def test_a_pass_ends_the_wait_before_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        world = World(monkeypatch, tmp_path)
        seen: list[float] = []

        class Observed(Interface):
            def __call__(self) -> tuple[IpAddress, ...] | None:
                seen.append(watch.status.silent_since_s)
                return super().__call__()

        watch = world.watch(Observed(None))
        for _ in range(3):
            watch.run_pass()
            assert watch.status.silent_since_s > world.clock.elapsed_s
            world.clock.sleep(0.5)
        assert seen == [0.0, 0.5, 1.0]

    def test_an_outage_of_both_upstreams_is_alive(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        world = World(monkeypatch, tmp_path)
        pod = Pod(world, tmp_path / "pod")
        world.headscale.faults.add(html(502), times=None)
        for at in range(0, 3600, 7):
            world.clock.schedule(at, lambda: alive.append(pod.watch.status.alive))
        alive: list[bool] = []
        pod.run(3600)
        assert len(alive) == 515
        assert all(alive)


def test_unknown_path(port: int) -> None:
    answer = get(port, "/")
    assert answer.status_code == 404
    assert all(path in answer.text for path in ENDPOINTS)


def test_a_query_changes_nothing(port: int) -> None:
    assert get(port, "/livez?verbose").json() == {"alive": True}


def test_head_requests_have_no_body(port: int) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("HEAD", "/readyz")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (503, b"")
        assert int(answer.headers["Content-Length"]) > 0


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_other_methods_are_refused(port: int, method: str) -> None:
    assert httpx.request(method, f"http://127.0.0.1:{port}/livez", timeout=30).status_code == 501


def test_the_server_header_has_no_versions(port: int) -> None:
    assert get(port, "/livez").headers["Server"].strip() == "tailscale-lifecycle"


# --- Metrics ----------------------------------------------------------------------------------------


def families(text: str) -> dict[str, Metric]:
    """Return our metrics by their names without the prefix."""
    prefix = "tailscale_lifecycle_"
    return {family.name.removeprefix(prefix): family for family in parse_text(text) if family.name.startswith(prefix)}


def samples(port: int) -> dict[tuple[str, ...], float]:
    """Return our samples by their name and label values."""
    return {
        (
            sample.name.removeprefix("tailscale_lifecycle_"),
            *(value for _, value in sorted(sample.labels.items(), reverse=True)),
        ): sample.value
        for family in families(get(port, "/metrics").text).values()
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        pytest.param("", "text/plain; version=0.0.4; charset=utf-8", id="none"),
        pytest.param("*/*", "text/plain; version=0.0.4; charset=utf-8", id="any"),
        pytest.param("text/plain;version=0.0.4", "text/plain; version=0.0.4; charset=utf-8", id="text"),
        pytest.param(
            PROMETHEUS_ACCEPTS, "application/openmetrics-text; version=1.0.0; charset=utf-8", id="openmetrics"
        ),
        pytest.param("<<;;q=,", "text/plain; version=0.0.4; charset=utf-8", id="garbage"),
    ],
)
def test_the_scraper_chooses_the_format(port: int, accept: str, kind: str) -> None:
    answer = get(port, "/metrics", accept=accept)
    assert (answer.status_code, answer.headers["Content-Type"].partition("; escaping")[0]) == (200, kind)
    parse = parse_openmetrics if "openmetrics" in kind else parse_text
    assert "tailscale_lifecycle_node_registered" in {family.name for family in parse(answer.text)}


def test_every_metric_has_a_name_and_a_help_text(status: Status, port: int) -> None:
    set_status(status, node_expires_at=NOW, api_key_expires_at=NOW)
    found = families(get(port, "/metrics").text)
    # In the plain text format, an info metric is a gauge with this suffix.
    assert {name.removesuffix("_info") for name in found} == set(METRICS)
    assert all(family.documentation.endswith(".") for family in found.values())
    assert all(family.type != "unknown" for family in found.values())


def test_counters_start_at_zero(status: Status, port: int) -> None:
    """So that `increase()` sees the first event."""
    found = samples(port)
    for service in ("Headscale", "Cloudflare", access.UPSTREAM):
        assert found["retries_total", service] == 0
        assert found["rate_limit_wait_seconds_total", service] == 0
    for service in ("Headscale", "Cloudflare"):
        assert found["last_success_timestamp_seconds", service] == 0
        for outcome in ("ok", "no_answer", "throttled", "server_error", "refused"):
            assert found["requests_total", service, outcome] == 0
    assert found["passes_total", "finished"] == found["passes_total", "failed"] == 0
    assert found["build_info", lifecycle.__version__, "unknown"] == 1
    assert ("api_key_expiration_timestamp_seconds",) not in found
    assert ("node_expiration_timestamp_seconds",) not in found


def test_metrics_count_what_happened(clock: Clock, status: Status, port: int) -> None:
    status.count_request("Headscale", "ok")
    status.succeeded("Headscale")
    status.count_request("Cloudflare", "throttled")
    status.failed("Cloudflare", throttled_s=12.5)
    status.pass_ended(30, duration_s=0.25, failed=True)
    set_status(
        status,
        headscale_version="0.28.0",
        is_registered=True,
        node_expires_at=NOW + timedelta(days=30),
        api_key_expires_at=NOW + timedelta(days=90),
    )
    found = samples(port)
    assert found["requests_total", "Headscale", "ok"] == found["requests_total", "Cloudflare", "throttled"] == 1
    assert found["retries_total", "Cloudflare"] == 1
    assert found["rate_limit_wait_seconds_total", "Cloudflare"] == 12.5
    assert found["last_success_timestamp_seconds", "Headscale"] == NOW.timestamp()
    assert found["last_success_timestamp_seconds", "Cloudflare"] == 0
    assert (found["pass_duration_seconds_count",], found["pass_duration_seconds_sum",]) == (1, 0.25)
    assert found["build_info", lifecycle.__version__, "0.28.0"] == 1
    assert found["node_registered",] == 1
    assert found["node_expiration_timestamp_seconds",] == (NOW + timedelta(days=30)).timestamp()
    assert found["api_key_expiration_timestamp_seconds",] == (NOW + timedelta(days=90)).timestamp()


def test_process_metrics_have_their_standard_names(port: int) -> None:
    found = {family.name for family in parse_text(get(port, "/metrics").text)}
    assert {"process_start_time_seconds", "process_resident_memory_bytes", "process_open_fds"} <= found


def test_a_long_version_is_cut(status: Status, port: int) -> None:
    set_status(status, headscale_version="0.28.0-" + "x" * 100_000)
    (family,) = (family for name, family in families(get(port, "/metrics").text).items() if name.startswith("build"))
    assert len(family.samples[0].labels["headscale"]) == 64


def test_metrics_have_known_labels_and_no_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, served: Port
) -> None:
    """This is so even after hours of failures of all kinds."""
    world = World(monkeypatch, tmp_path)
    world.headscale.add_node("laptop", user="svc", registered_by="cli")
    pod = Pod(world, tmp_path / "pod", {"SELF_HEAL": "true", "MAX_RETRIES": "0"})
    pod.start()
    port = served(pod.watch.status)
    said = ""

    def ask() -> None:
        nonlocal said
        for path in ("/livez", "/readyz", "/nodez", "/metrics", "/other"):
            said += get(port, path).text

    pod.run(60)
    ask()
    for fault in (html(404), html(502), too_many_requests(7), too_many_requests()):
        for simulator in (world.headscale, world.cloudflare):
            simulator.faults.add(fault, times=5)
            pod.run(900)
            ask()
    world.headscale.rotate_api_key()
    world.cloudflare.set_token()
    pod.run(900)
    ask()
    world.headscale.delete_node(pod.node_id)
    pod.run(900)
    ask()

    for name, family in families(get(port, "/metrics").text).items():
        known = METRICS[name.removesuffix("_info")]
        for sample in family.samples:
            assert sample.labels.keys() == known.keys()
            assert all(known[label] is None or value in (known[label] or ()) for label, value in sample.labels.items())
    secrets = [*world.headscale.secrets(), *world.cloudflare.secrets(), pod.key]
    assert len(secrets) > 5
    assert not [secret for secret in secrets if secret in said]


def test_an_html_page_is_not_a_success(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A proxy can respond with 200 too."""
    world = World(monkeypatch, tmp_path)
    pod = Pod(world, tmp_path / "pod")
    pod.start()
    pod.run(60)
    before = dict(pod.watch.status.succeeded_at)
    assert all(before.values())
    for simulator in (world.headscale, world.cloudflare):
        simulator.faults.add(html(200), times=None)
    pod.run(3600)
    assert pod.watch.status.succeeded_at == before


# --- Clients cannot harm the loop --------------------------------------------------------------------------


def serving_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]


def silent_clients(stack: ExitStack, port: int, number: int, request_data: bytes) -> None:
    """Open connections that send these bytes and then wait."""
    for _ in range(number):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        client.sendall(request_data)


@pytest.mark.parametrize(
    "request_data",
    [
        pytest.param(b"", id="no data"),
        pytest.param(b"GET /metrics HTT", id="incomplete line"),
        pytest.param(b"GET /metrics HTTP/1.1\r\nX-A: 1\r\n", id="incomplete headers"),
        pytest.param(b"GET /metrics HTTP/1.1\r\n\r\n", id="response not read"),
    ],
)
def test_slow_clients_do_not_block_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, served: Port, request_data: bytes
) -> None:
    """A hundred of them use a few threads and delay no pass."""
    world = World(monkeypatch, tmp_path)
    pod = Pod(world, tmp_path / "pod")
    pod.start()
    port = served(pod.watch.status)
    with ExitStack() as stack:
        silent_clients(stack, port, 100, request_data)
        pod.run(60)
        assert pod.watch.status.passes == {"finished": pod.watch.status.passes["finished"], "failed": 0}
        for path in ("/livez", "/nodez", "/metrics"):
            assert get(port, path).status_code == 200
        eventually(lambda: len(serving_threads()) <= 16, "the oldest clients to be hung up on")
    eventually(lambda: not serving_threads(), "all to be gone")


def test_disconnected_clients_are_not_logged(port: int, capfd: pytest.CaptureFixture[str], events: list[Any]) -> None:
    for request_data in (b"", b"GET", b"GET /metrics HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.sendall(request_data)
    eventually(lambda: not serving_threads(), "all to be gone")
    assert get(port, "/livez").status_code == 200
    assert capfd.readouterr() == ("", "")
    assert events == []


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


def test_a_bug_keeps_its_traceback(
    status: Status, served: Port, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The server keeps serving requests."""
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    port = served(status)
    set_status(status, addresses=1)
    with pytest.raises(httpx.RemoteProtocolError):
        get(port, "/readyz")
    assert get(port, "/livez").status_code == 200
    eventually(lambda: seen, "the traceback")
    assert seen[0].exc_type is TypeError


# --- Where it listens -------------------------------------------------------------------------------


def reachable(port: int, host: str) -> bool:
    try:
        socket.create_connection((host, port), timeout=30).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize(
    ("address", "ipv4", "ipv6"),
    [
        pytest.param(None, True, True, id="everywhere"),
        pytest.param("127.0.0.1", True, False, id="ipv4"),
        pytest.param("::1", False, True, id="ipv6"),
    ],
)
def test_listens_at_the_configured_address(
    status: Status, served: Port, address: str | None, ipv4: bool, ipv6: bool
) -> None:
    port = served(status, address)
    assert (reachable(port, "127.0.0.1"), reachable(port, "::1")) == (ipv4, ipv6)


def test_port_zero_disables_the_server(status: Status, events: list[Any]) -> None:
    before = threading.active_count()
    serve(status, address=None, port=0)()
    assert (threading.active_count(), events) == (before, [])


@pytest.mark.parametrize("address", [None, "127.0.0.1"])
def test_a_port_in_use_is_one_error(status: Status, events: list[Any], address: str | None) -> None:
    """The containers of a pod share their ports."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        close = serve(status, address=address, port=taken.getsockname()[1])
        close()
    (error,) = events
    assert (error["event"], error["log_level"]) == ("health_port.unavailable", "error")
    assert error["error"].startswith("Address already in use")
    assert "HEALTH_PORT" in error["advice"]


@pytest.mark.parametrize("address", ["192.0.2.1", "no such address", "300.1.1.1"])
def test_a_foreign_address_is_one_error(status: Status, events: list[Any], address: str) -> None:
    serve(status, address=address, port=free_ports(1)[0])()
    assert names(events) == ["health_port.unavailable"]


def test_a_closed_port_can_be_used_again(status: Status) -> None:
    (port,) = free_ports(1)
    for _ in range(2):
        close = serve(status, address="127.0.0.1", port=port)
        assert get(port, "/livez").status_code == 200
        close()
        assert not reachable(port, "127.0.0.1")


# --- The process ------------------------------------------------------------------------------------


@pytest.fixture
def dns_watch(clean_environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Start dns-watch without reachable upstreams, and return the path of its log."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**variables: str) -> Path:
        log = tmp_path / "log"
        (unused,) = free_ports(1)
        environment = clean_environment | {
            "HEADSCALE_URL": f"http://127.0.0.1:{unused}",
            "HEADSCALE_API_KEY": "key",
            "CLOUDFLARE_API_TOKEN": "token",
            "CLOUDFLARE_API_URL": f"http://127.0.0.1:{unused}/client/v4",
            "DOMAIN_NAME": "example.com",
            "HOSTNAME": "grafana-0",
            "AUTHKEY_OUTPUT_PATH": str(tmp_path / "authkey"),
            "TAILSCALE_INTERFACE": "",
            "PYTHONPATH": str(Path(lifecycle.__file__).parent.parent),
            **variables,
        }
        with log.open("wb") as out:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "lifecycle", "dns-watch"],
                    env=environment,
                    cwd=tmp_path,
                    stdout=out,
                    stderr=out,
                )
            )
        return log

    yield start
    for process in started:
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0


def events_of(log: Path) -> list[Any]:
    return [json.loads(line) for line in log.read_text().split("\n")[:-1]]


def test_the_loop_continues_without_its_port(dns_watch: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        log = dns_watch(HEALTH_PORT=str(taken.getsockname()[1]), HEALTH_ADDRESS="127.0.0.1")
        eventually(lambda: len(named(events_of(log), "pass.failed")) >= 2, "two passes")
    assert len(named(events_of(log), "health_port.unavailable")) == 1


def test_the_process_serves_the_configured_address(dns_watch: Callable[..., Path]) -> None:
    """This holds even if no upstream is reachable."""
    (port,) = free_ports(1)
    log = dns_watch(HEALTH_PORT=str(port), HEALTH_ADDRESS="127.0.0.1")
    eventually(lambda: reachable(port, "127.0.0.1"), "the port")
    assert not reachable(port, "::1")
    assert get(port, "/livez").json() == {"alive": True}
    eventually(lambda: "HEADSCALE_URL" in get(port, "/readyz").json()["reason"], "the reason")
    assert get(port, "/nodez").status_code == 200
    assert "health_port.unavailable" not in names(events_of(log))
