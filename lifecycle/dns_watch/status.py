"""The state of dns-watch that the health port reports to people, probes and Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic as system_monotonic
from time import time
from typing import Any

from lifecycle.dns_watch.state import State
from lifecycle.domain.errors import ApiError, TransientError

_UPSTREAMS = ("Headscale", "Cloudflare")

# With HEADSCALE_ACCESS=exec, requests to Headscale go through the Kubernetes API, which can fail while Headscale works.
# They count as requests to Headscale, but retries after a failure of the Kubernetes API are counted separately.
_RETRIED_UPSTREAMS = (*_UPSTREAMS, "Kubernetes")

_OUTCOMES = ("ok", "no_answer", "throttled", "server_error", "refused")

# The loop counts as dead if it makes no progress for this many times its longest interval. A record that was right when
# it was last read counts as right for this many times VERIFY_INTERVAL.
_TOLERATED_INTERVALS = 3


@dataclass(slots=True)
class Status:
    """The state after the last pass, and counters since the start. They are only reported; no decision depends on them.

    Attributes:
        longest_interval: the longest wait between two passes.
        monotonic: returns seconds that never go back.
        clock: returns seconds since 1970.
        restart_helps: True if a restart of the tailscale container would bring the node back.
        poll_interval_s: the current interval between polls of a registered node.
        no_progress_since_s: monotonic time of the last progress; during a planned wait, the time when the wait ends.
        requests: the number of requests by upstream and outcome.
        succeeded_at: when each upstream last returned what was requested, in seconds since 1970.
        throttled_s: total seconds of backoff after rate limiting, by upstream.
        retries: retries after a failure, by upstream.
        passes: the number of passes that "finished" and "failed".
        passes_s: the total duration of these passes in seconds.
    """

    longest_interval: timedelta
    verify_interval: timedelta
    monotonic: Callable[[], float] = system_monotonic
    clock: Callable[[], float] = time
    state: State = field(default_factory=State)
    restart_helps: bool = False
    poll_interval_s: float = 0.0
    no_progress_since_s: float = 0.0
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    succeeded_at: dict[str, float] = field(default_factory=dict)
    throttled_s: dict[str, float] = field(default_factory=dict)
    retries: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    passes_s: float = 0.0

    def __post_init__(self) -> None:
        self.no_progress_since_s = self.monotonic()
        # Prometheus' `increase()` does not count the first event if the counter did not exist before it.
        self.requests.update({(upstream, outcome): 0 for upstream in _UPSTREAMS for outcome in _OUTCOMES})
        self.throttled_s.update(dict.fromkeys(_RETRIED_UPSTREAMS, 0.0))
        self.retries.update(dict.fromkeys(_RETRIED_UPSTREAMS, 0))
        self.passes.update(finished=0, failed=0)
        self.succeeded_at.update(dict.fromkeys(_UPSTREAMS, 0.0))

    def count_request(self, upstream: str, outcome: str) -> None:
        """Count a request by its outcome."""
        self.requests[upstream, outcome] += 1

    def record_success(self, upstream: str) -> None:
        """Record that an upstream returned what was requested, and not only some response."""
        self.succeeded_at[upstream] = self.clock()

    def count_retry(self, error: ApiError, wait_s: float) -> None:
        """Count a retry after a failure, and the seconds of backoff if the cause was rate limiting."""
        self.retries[error.upstream] += 1
        if isinstance(error, TransientError) and error.throttled:
            self.throttled_s[error.upstream] += wait_s

    def pass_began(self) -> None:
        """End the planned wait. If it is already over, the time without progress still counts from its planned end."""
        self.no_progress_since_s = min(self.no_progress_since_s, self.monotonic())

    def pass_ended(self, wait_s: float, *, duration_s: float, failed: bool) -> None:
        """Record progress, and that the loop now waits for this many seconds."""
        self.passes["failed" if failed else "finished"] += 1
        self.passes_s += duration_s
        self.no_progress_since_s = self.monotonic() + wait_s

    @property
    def alive(self) -> bool:
        """Return True if the main loop is making progress, also while an upstream is unavailable."""
        no_progress_s = self.monotonic() - self.no_progress_since_s
        return no_progress_s <= _TOLERATED_INTERVALS * self.longest_interval.total_seconds()

    @property
    def reason(self) -> str:
        """Why the record is not right, or not known to be right; "" if it is right."""
        records = self.state.records
        age_s = self.monotonic() - records.verified_at_s
        if records.in_sync and age_s > _TOLERATED_INTERVALS * self.verify_interval.total_seconds():
            failure = records.last_failure or "none"
            return f"the record was right when it was last read, but that is too long ago. Last failure: {failure}"
        return records.reason

    @property
    def ready(self) -> bool:
        """Return True if the record was right when it was last read, and this read is recent."""
        return not self.reason

    def readiness(self) -> dict[str, Any]:
        """Return the body of `/readyz`."""
        reason, addresses = self.reason, [str(address) for address in self.state.records.addresses]
        return {"ready": not reason, "reason": reason, "addresses": addresses}

    @property
    def node_state(self) -> str:
        """One word: waiting, registered, superseded, gone, expired or stranded. docs/operations.md explains them."""
        if self.state.superseded_by is not None:
            return "superseded"
        return "registered" if self.state.is_registered else self.state.heal.lost or "waiting"

    def node(self) -> dict[str, Any]:
        """Return the body of `/nodez`."""
        return {
            "state": self.node_state,
            "node_id": self.state.node.id if self.state.node else None,
            "superseded_by": self.state.superseded_by,
            "restart_helps": self.restart_helps,
        }
