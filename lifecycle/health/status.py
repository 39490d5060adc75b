"""What the process reports about itself, for people, probes and Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import monotonic as system_monotonic
from time import time
from typing import Any

from lifecycle.domain.model import IpAddress

UPSTREAMS = ("Headscale", "Cloudflare")
"""The upstreams that dns-watch sends requests to."""

# Requests to Headscale can be routed through the Kubernetes API, which can fail on its own.
_FAILING_UPSTREAMS = (*UPSTREAMS, "Kubernetes")

_OUTCOMES = ("ok", "no_answer", "throttled", "server_error", "refused")

# How many longest intervals without progress mean that the loop is dead, and how many VERIFY_INTERVALs a record
# counts as right after it was read.
_TOLERATED_INTERVALS = 3


@dataclass(frozen=True, slots=True)
class View:
    """What the last pass found; None = not known, not yet, or never.

    Attributes:
        lost: the confirmed loss: gone, expired or stranded.
        restart_helps: a restart of the tailscale container brings the node back.
        superseded_by: the id of the later pod's node for which this pod stands down.
        in_sync: the record was right when it was last read.
        reason: why it is not; "" if it is.
        addresses: what was published last.
        verified_at_s: monotonic time when the record was last right.
    """

    node_id: str | None = None
    is_registered: bool = False
    lost: str | None = None
    restart_helps: bool = False
    superseded_by: str | None = None
    in_sync: bool = False
    reason: str = "no pass has finished yet"
    addresses: tuple[IpAddress, ...] = ()
    verified_at_s: float | None = None
    node_expires_at: datetime | None = None
    api_key_expires_at: datetime | None = None
    headscale_version: str = ""

    @property
    def node_state(self) -> str:
        """One word: waiting, registered, superseded, gone, expired or stranded."""
        if self.superseded_by is not None:
            return "superseded"
        return "registered" if self.is_registered else self.lost or "waiting"


@dataclass(slots=True)
class Status:
    """The last view, and counters since the start. No decision reads it.

    Attributes:
        longest_interval: the longest wait between two passes.
        monotonic: returns seconds that never go back.
        clock: returns seconds since 1970.
        silent_since_s: monotonic time of the last progress, or the end of the wait after it.
        requests: completed requests by upstream and outcome.
        succeeded_at: when each upstream last returned what was requested, in seconds since 1970.
        throttled_s: total seconds of backoff after rate limiting, by upstream.
        passes_s: the total duration of all passes in seconds.
    """

    longest_interval: timedelta
    verify_interval: timedelta
    monotonic: Callable[[], float] = system_monotonic
    clock: Callable[[], float] = time
    view: View = field(default_factory=View)
    silent_since_s: float = 0.0
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    succeeded_at: dict[str, float] = field(default_factory=dict)
    throttled_s: dict[str, float] = field(default_factory=dict)
    retries: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    passes_s: float = 0.0

    def __post_init__(self) -> None:
        self.silent_since_s = self.monotonic()
        # A counter that first appears with its first event hides that event from `increase()`.
        self.requests.update({(upstream, outcome): 0 for upstream in UPSTREAMS for outcome in _OUTCOMES})
        self.throttled_s.update(dict.fromkeys(_FAILING_UPSTREAMS, 0.0))
        self.retries.update(dict.fromkeys(_FAILING_UPSTREAMS, 0))
        self.passes.update(finished=0, failed=0)
        for upstream in UPSTREAMS:
            self.succeeded_at.setdefault(upstream, 0.0)

    def count_request(self, upstream: str, outcome: str) -> None:
        """Count a completed request."""
        self.requests[upstream, outcome] += 1

    def succeeded(self, upstream: str) -> None:
        """Record that an upstream returned what was requested, not just any response."""
        self.succeeded_at[upstream] = self.clock()

    def failed(self, upstream: str, *, throttled_s: float) -> None:
        """Count a retry after a failure, and the seconds of backoff if it was rate limiting."""
        self.retries[upstream] += 1
        self.throttled_s[upstream] = self.throttled_s.get(upstream, 0.0) + throttled_s

    def pass_began(self) -> None:
        """Record progress. It ends the wait after the last pass, even one that was to be longer."""
        self.silent_since_s = min(self.silent_since_s, self.monotonic())

    def pass_ended(self, wait_s: float, *, duration_s: float, failed: bool) -> None:
        """Record progress, and how long the loop waits now."""
        self.passes["failed" if failed else "finished"] += 1
        self.passes_s += duration_s
        self.silent_since_s = self.monotonic() + wait_s

    @property
    def alive(self) -> bool:
        """Return True if the main loop is making progress. Upstream outages do not count."""
        silent_s = self.monotonic() - self.silent_since_s
        return silent_s <= _TOLERATED_INTERVALS * self.longest_interval.total_seconds()

    @property
    def ready(self) -> bool:
        """Return True if the record was right when it was last read, and that is recent."""
        return self.view.in_sync and not self._is_outdated

    @property
    def _is_outdated(self) -> bool:
        if self.view.verified_at_s is None:
            return True
        age_s = self.monotonic() - self.view.verified_at_s
        return age_s > _TOLERATED_INTERVALS * self.verify_interval.total_seconds()

    def readiness(self) -> dict[str, Any]:
        """Return the body of `/readyz`."""
        view = self.view
        reason = view.reason
        if view.in_sync and self._is_outdated:
            reason = "the record was right when it was last read, but that is too long ago"
        return {"ready": self.ready, "reason": reason, "addresses": [str(address) for address in view.addresses]}

    def node(self) -> dict[str, Any]:
        """Return the body of `/nodez`."""
        view = self.view
        return {
            "state": view.node_state,
            "node_id": view.node_id,
            "superseded_by": view.superseded_by,
            "restart_helps": view.restart_helps,
        }
