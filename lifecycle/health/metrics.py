"""The metrics that `/metrics` serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import lifecycle
from lifecycle.dns_watch.status import Status
from lifecycle.runtime.logs import dropped_lines

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

# The maximum length of Headscale's version in a label. Headscale could return a string of any length.
_MAX_VERSION_LENGTH = 64


def render_metrics(status: Status, *, accept: str) -> tuple[str, bytes]:
    """Return the metrics in the format that the Accept header requests, as content type and body."""
    # Imported at the first scrape, to save memory in pods that are never scraped.
    from prometheus_client import CollectorRegistry, ProcessCollector  # noqa: PLC0415
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

    class StatusCollector:
        def collect(self) -> Iterator[Metric]:
            return _metrics(status)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(StatusCollector())
    # Memory, open files and start time under their standard names.
    ProcessCollector(registry=registry)
    try:
        encode, content_type = choose_encoder(accept)
    except TypeError:
        # The library cannot compare a version such as "1.0.0" in quotes or 2.0-beta.
        encode, content_type = choose_encoder("")
    return content_type, encode(registry)


def _metrics(status: Status) -> Iterator[Metric]:
    """Yield every metric. Only the labels with versions have values that are not known in advance."""
    from prometheus_client.metrics_core import CounterMetricFamily as Counter  # noqa: PLC0415 - see render_metrics
    from prometheus_client.metrics_core import GaugeMetricFamily as Gauge  # noqa: PLC0415
    from prometheus_client.metrics_core import InfoMetricFamily as Info  # noqa: PLC0415
    from prometheus_client.metrics_core import SummaryMetricFamily as Summary  # noqa: PLC0415

    state = status.state
    prefix = "tailscale_lifecycle_"
    for name, description, value in (
        ("node_registered", "1 while the pod's node is registered in Headscale.", state.is_registered),
        (
            "node_lost",
            "1 while it is confirmed that the node is gone or expired, or that no node has the pod's address.",
            state.heal.lost is not None,
        ),
        ("node_superseded", "1 while another pod of the workload has the hostname.", state.superseded_by is not None),
        ("node_restart_helps", "1 while a restart of tailscale would bring the node back.", status.restart_helps),
        ("poll_interval_seconds", "Current interval between reads of the node in Headscale.", status.poll_interval_s),
        ("record_in_sync", "1 while the DNS record is right and was read recently.", status.ready),
    ):
        yield Gauge(prefix + name, description, value=float(value))

    yield Summary(
        prefix + "pass_duration_seconds",
        "Duration of finished and failed passes.",
        count_value=sum(status.passes.values()),
        sum_value=status.passes_s,
    )
    for family, name, description, labels, values in (
        (Counter, "passes", "Passes by outcome.", ["outcome"], status.passes),
        (Counter, "requests", "Completed requests by upstream and outcome.", ["upstream", "outcome"], status.requests),
        (Counter, "retries", "Retries after a failure, by upstream.", ["upstream"], status.retries),
        (
            Counter,
            "rate_limit_wait_seconds",
            "Seconds of backoff after rate limiting (429), by upstream.",
            ["upstream"],
            status.throttled_s,
        ),
        (
            Gauge,
            "last_success_timestamp_seconds",
            "When an upstream last returned what was requested, in seconds since 1970; 0 = not since the start.",
            ["upstream"],
            status.succeeded_at,
        ),
    ):
        labelled = family(prefix + name, description, labels=labels)
        for key, number in sorted(values.items()):
            labelled.add_metric([key] if isinstance(key, str) else key, number)
        yield labelled
    for name, description, expires_at in (
        ("node", "When the registration of the pod's node expires, in seconds since 1970.", state.node_expires_at),
        ("api_key", "When Headscale will refuse the API key, in seconds since 1970.", state.api_key_expires_at),
    ):
        if expires_at is not None:
            metric = prefix + name + "_expiration_timestamp_seconds"
            yield Gauge(metric, description, value=expires_at.timestamp())
    dropped = "Log lines that could not be written to standard output."
    yield Counter(prefix + "log_lines_dropped", dropped, value=dropped_lines())
    headscale = state.headscale_version[:_MAX_VERSION_LENGTH] or "unknown"
    versions = {"version": lifecycle.__version__, "headscale": headscale}
    yield Info(prefix + "build", "Versions of this program and of Headscale.", value=versions)
