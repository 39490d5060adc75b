"""What the program knows of itself, and the port that tells it to people, probes and Prometheus."""

from __future__ import annotations

import json
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from time import monotonic as system_monotonic
from time import time
from typing import TYPE_CHECKING, Any

import structlog

import lifecycle
from lifecycle.domain.errors import ApiError, AuthError, TransientError
from lifecycle.domain.model import IpAddress

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = structlog.get_logger()

# A client that sends or reads nothing for so long is hung up on, and the oldest of more than so many at once.
_CLIENT_PATIENCE_S = 5.0
_MOST_CLIENTS = 16

# Those that are asked, and those that what was asked can fail at: the way to Headscale may be through Kubernetes.
UPSTREAMS = ("Headscale", "Cloudflare")
FAILING = (*UPSTREAMS, "Kubernetes")

# What a request can come to, by which requests are counted.
OUTCOMES = ("ok", "no_answer", "throttled", "server_error", "refused")

# A server's word for its version becomes a label: more than this is no version.
_LONGEST_VERSION = 64

# How many longest intervals the loop may be silent before it counts as dead, and how many VERIFY_INTERVALs
# a record that was right counts as right.
_TOLERATED_INTERVALS = 3


@dataclass(slots=True)
class Status:
    """What the passes found, for people and probes; no pass decides anything by it.

    Attributes:
        longest_interval: the longest that two passes may lie apart.
        verify_interval: how often the record is read when nothing changed.
        monotonic: seconds that never go back.
        clock: seconds since 1970.
        registered: our node was there when it was last looked for.
        ever_registered: our node has been seen since the start.
        node_id: our node, where it was seen last; None until then.
        lost: how our node is confirmed lost: gone, expired or stranded; None when it is not.
        restart_helps: the node is confirmed gone or expired, no later pod has the name, and a fresh key is in the file.
        in_sync: the record was right when it was last looked at.
        reason: why it is not right, or not known to be; "" when it is.
        superseded_by: the id of the node for which this pod stands down.
        addresses: what was published last.
        verified_at: when the record was last right, in seconds that never go back; None = never yet.
        silent_since: when the loop was last heard of, likewise; the end of a wait that it has declared.
        headscale_version: as the server says it; "" until it was asked.
        node_expires_at: when our node has to log in again; None = never, or it is not there.
        api_key_expires_at: when Headscale will refuse our API key; None = never, or it is not known.
        requests: ended requests by service and outcome.
        succeeded_at: when each service last gave what was asked for, in seconds since 1970.
        throttled_s: seconds for which each service made us stay away, all in all.
        retries: further tries after a failure, by service.
        passes: finished and failed passes.
        passes_s: seconds that they took, all in all.
    """

    longest_interval: timedelta
    verify_interval: timedelta
    monotonic: Callable[[], float] = system_monotonic
    clock: Callable[[], float] = time
    registered: bool = False
    ever_registered: bool = False
    node_id: str | None = None
    lost: str | None = None
    restart_helps: bool = False
    in_sync: bool = False
    reason: str = "no pass has finished yet"
    superseded_by: str | None = None
    addresses: tuple[IpAddress, ...] = ()
    verified_at: float | None = None
    silent_since: float = 0.0
    headscale_version: str = ""
    node_expires_at: datetime | None = None
    api_key_expires_at: datetime | None = None
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    succeeded_at: dict[str, float] = field(default_factory=dict)
    throttled_s: dict[str, float] = field(default_factory=dict)
    retries: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    passes_s: float = 0.0

    def __post_init__(self) -> None:
        self.silent_since = self.monotonic()
        # A counter that appears with its first event hides that event from whoever asks for an increase.
        self.requests.update({(service, outcome): 0 for service in UPSTREAMS for outcome in OUTCOMES})
        self.throttled_s.update(dict.fromkeys(FAILING, 0.0))
        self.retries.update(dict.fromkeys(FAILING, 0))
        self.passes.update(finished=0, failed=0)
        for service in UPSTREAMS:
            self.succeeded_at.setdefault(service, 0.0)

    def observe(self, upstream: str, outcome: str) -> None:
        """Count a request that ended."""
        self.requests[upstream, outcome] += 1

    def succeeded(self, upstream: str) -> None:
        """Note that a service gave what was asked for, not just any page."""
        self.succeeded_at[upstream] = self.clock()

    def out_of_sync(self, reason: str) -> None:
        """Note that the record is not right, or not known to be."""
        self.in_sync = False
        self.reason = reason

    def verified(self, addresses: tuple[IpAddress, ...]) -> None:
        """Note that the record says these addresses, and nothing else."""
        self.in_sync = True
        self.reason = ""
        self.addresses = addresses
        self.verified_at = self.monotonic()

    def failed(self, error: ApiError, *, failures: int, wait_s: float) -> None:
        """Note, and log, that a pass failed and when it will be tried again.

        Args:
            failures: how many there were in a row, at this service.
            wait_s: seconds until the service is asked again.
        """
        self.passes["failed"] += 1
        self.retries[error.upstream] += 1
        if not self.in_sync:
            self.reason = str(error)
        if isinstance(error, TransientError) and error.throttled:
            self.throttled_s[error.upstream] = self.throttled_s.get(error.upstream, 0.0) + wait_s
        # Refused credentials are for somebody who must act, an outage for somebody who may have to.
        level = log.error if isinstance(error, AuthError) else log.warning
        level(
            "pass.failed",
            upstream=error.upstream,
            error=str(error),
            error_type=type(error).__name__,
            failures_in_a_row=failures,
            wait_s=round(wait_s, 1),
        )

    def began(self) -> None:
        """Note that a pass has begun, which ends the wait before it, also one that was to be longer."""
        self.silent_since = min(self.silent_since, self.monotonic())

    def progressed(self, wait_s: float) -> None:
        """Note that a pass has finished or failed, and how long the loop waits now."""
        self.silent_since = self.monotonic() + wait_s

    @property
    def alive(self) -> bool:
        """Whether the loop still goes round."""
        silent_s = self.monotonic() - self.silent_since
        return silent_s <= _TOLERATED_INTERVALS * self.longest_interval.total_seconds()

    @property
    def node_state(self) -> str:
        """One word: waiting, registered, superseded, gone, expired or stranded."""
        if self.superseded_by is not None:
            return "superseded"
        return "registered" if self.registered else self.lost or "waiting"

    @property
    def ready(self) -> bool:
        """Whether the record was right when it was last looked at, and that is not long ago."""
        return self.in_sync and not self._outdated

    @property
    def _outdated(self) -> bool:
        if self.verified_at is None:
            return True
        age_s = self.monotonic() - self.verified_at
        return age_s > _TOLERATED_INTERVALS * self.verify_interval.total_seconds()

    def readiness(self) -> dict[str, Any]:
        """What `/readyz` says."""
        reason = self.reason
        if self.in_sync and self._outdated:
            reason = "the record was right when it was last looked at, but that is too long ago"
        return {"ready": self.ready, "reason": reason, "addresses": [str(address) for address in self.addresses]}

    def node(self) -> dict[str, Any]:
        """What `/nodez` says."""
        return {
            "state": self.node_state,
            "node_id": self.node_id,
            "superseded_by": self.superseded_by,
            "restart_helps": self.restart_helps,
        }


def serve(status: Status, *, address: str | None, port: int) -> Callable[[], None]:
    """Answer on the health port from now on, in threads of their own.

    Args:
        status: asked anew at each request.
        address: where to listen; None = everywhere, IPv4 and IPv6.
        port: 0 = none. A port that is taken is one error in the log: the pod's containers share them.

    Returns:
        What closes the port.
    """
    if port == 0:
        return lambda: None
    try:
        server = _Server(address, port, partial(_Handler, status))
    except OSError as error:
        log.error(
            "health_port.unavailable",
            address=address,
            port=port,
            error=error.strerror or str(error),
            advice="set HEALTH_PORT to a free port, or HEALTH_ADDRESS to one of the pod's addresses",
        )
        return lambda: None
    Thread(target=server.serve_forever, name="health", daemon=True).start()

    def close() -> None:
        # Else it would be half a second before the thread looks up.
        with suppress(OSError):
            server.socket.shutdown(socket.SHUT_RDWR)
        server.shutdown()
        server.server_close()

    return close


class _Server(ThreadingHTTPServer):
    """Each client in a thread of its own, and not too many of them: none can keep a probe from its answer."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: str | None, port: int, handler: Callable[..., BaseHTTPRequestHandler]) -> None:
        self._clients: dict[socket.socket, None] = {}
        self._clients_lock = Lock()
        everywhere = address is None
        if everywhere and socket.has_dualstack_ipv6():
            listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        else:
            family = socket.AF_INET6 if ":" in (address or "") else socket.AF_INET
            listener = socket.create_server((address or "", port), family=family)
        super().__init__(("", port), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def process_request(self, request: Any, client_address: Any) -> None:
        """Make room for the new client: the oldest one is hung up on."""
        with self._clients_lock:
            self._clients[request] = None
            if len(self._clients) > _MOST_CLIENTS:
                oldest = next(iter(self._clients))
                del self._clients[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The client is served, or has gone."""
        with self._clients_lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the library's signature
        """A client that hangs up is no event of ours; a bug keeps its traceback, and the port goes on."""
        error = sys.exception()
        if error is not None and not isinstance(error, OSError):
            raise error


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_PATIENCE_S
    protocol_version = "HTTP/1.0"
    server_version = "tailscale-lifecycle"
    sys_version = ""

    def __init__(self, status: Status, *arguments: Any) -> None:
        self._status = status
        super().__init__(*arguments)

    def do_GET(self) -> None:  # the library's name
        status = self._status
        match self.path.partition("?")[0]:
            case "/livez":
                self._say(status.alive, {"alive": status.alive})
            case "/readyz":
                self._say(status.ready, status.readiness())
            case "/nodez":
                self._say(not status.restart_helps, status.node())
            case "/metrics":
                kind, body = render_metrics(status, accept=self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, kind, body)
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"try /livez, /readyz, /nodez or /metrics\n")

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Probes come every few seconds; they are no events."""

    def _say(self, good: bool, body: dict[str, Any]) -> None:  # noqa: FBT001
        status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
        self._answer(status, "application/json", json.dumps(body).encode() + b"\n")

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def render_metrics(status: Status, *, accept: str) -> tuple[str, bytes]:
    """The metrics in the format that the scraper wants: content type and body.

    Args:
        accept: the request's Accept header; "" = the plain text format.
    """
    # Only who scrapes pays for it.
    from prometheus_client import CollectorRegistry, ProcessCollector  # noqa: PLC0415
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

    class Snapshot:
        def collect(self) -> Iterator[Metric]:
            return _metrics(status)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Snapshot())
    # Memory, files and start, by the names that every dashboard knows.
    ProcessCollector(registry=registry)
    encode, content_type = choose_encoder(accept)
    return content_type, encode(registry)


def _metrics(status: Status) -> Iterator[Metric]:
    """Every metric; labels have few values, all known beforehand, but for the versions."""
    from prometheus_client.metrics_core import (  # noqa: PLC0415 - see render_metrics
        CounterMetricFamily,
        GaugeMetricFamily,
        InfoMetricFamily,
        SummaryMetricFamily,
    )

    prefix = "tailscale_lifecycle_"
    for name, meaning, value in (
        ("node_registered", "1 while the pod's node is registered in Headscale.", status.registered),
        ("node_lost", "1 while the pod's node is confirmed gone, expired or stranded.", status.lost is not None),
        ("node_superseded", "1 while a later pod of the service has the name.", status.superseded_by is not None),
        ("node_restart_helps", "1 while a restart of tailscale would bring the node back.", status.restart_helps),
        ("record_in_sync", "1 while the DNS record is right and was looked at not long ago.", status.ready),
    ):
        yield GaugeMetricFamily(prefix + name, meaning, value=float(value))

    yield SummaryMetricFamily(
        prefix + "pass_duration_seconds",
        "How long passes took, finished and failed ones.",
        count_value=sum(status.passes.values()),
        sum_value=status.passes_s,
    )
    passes = CounterMetricFamily(prefix + "passes", "Passes by outcome.", labels=["outcome"])
    for outcome, number in sorted(status.passes.items()):
        passes.add_metric([outcome], number)
    yield passes
    requests = CounterMetricFamily(
        prefix + "requests", "Requests by service and outcome.", labels=["upstream", "outcome"]
    )
    for (service, outcome), number in sorted(status.requests.items()):
        requests.add_metric([service, outcome], number)
    yield requests
    retries = CounterMetricFamily(prefix + "retries", "Further tries after a failure.", labels=["upstream"])
    for service, number in sorted(status.retries.items()):
        retries.add_metric([service], number)
    yield retries
    throttled = CounterMetricFamily(
        prefix + "rate_limit_wait_seconds", "For how long too many requests made us stay away.", labels=["upstream"]
    )
    for service, seconds in sorted(status.throttled_s.items()):
        throttled.add_metric([service], seconds)
    yield throttled
    succeeded = GaugeMetricFamily(
        prefix + "last_success_timestamp_seconds",
        "When a service last gave what was asked for, in seconds since 1970; 0 = not since the start.",
        labels=["upstream"],
    )
    for service, at in sorted(status.succeeded_at.items()):
        succeeded.add_metric([service], at)
    yield succeeded
    for name, meaning, expires_at in (
        ("node", "When the pod's node has to log in again, in seconds since 1970.", status.node_expires_at),
        ("api_key", "When Headscale will refuse our API key, in seconds since 1970.", status.api_key_expires_at),
    ):
        if expires_at is not None:
            metric = prefix + name + "_expiration_timestamp_seconds"
            yield GaugeMetricFamily(metric, meaning, value=expires_at.timestamp())
    yield InfoMetricFamily(
        prefix + "build",
        "Versions of this program and of the Headscale it talks to.",
        value={
            "version": lifecycle.__version__,
            "headscale": status.headscale_version[:_LONGEST_VERSION] or "unknown",
        },
    )
