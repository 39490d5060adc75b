"""Decide when something is due, and how long to wait; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lifecycle.dns_watch.healing import restart_helps
from lifecycle.dns_watch.state import Interface, Moment, RecordState, State, WatchConfig
from lifecycle.domain.backoff import doubled, lengthened, shortened
from lifecycle.domain.model import Node, RecordSpec

_INTERFACE_GRACE_S = 30.0
"""How long a pod may take to create its VPN interface before it is assumed to have none."""

_DAY_S = 86_400.0

# Waking up a microsecond before the records are due would cost a request to Headscale.
_MARGIN_S = 0.001


def with_interface(state: State, interface: Interface, now: Moment) -> State:
    """Remember the VPN interface. Lookups become frequent again when it changes."""
    if interface is not None:
        state = replace(state, interface_seen_s=now.monotonic_s)
    if interface == state.interface:
        return state
    return replace(
        state,
        interface=interface,
        interface_changed_s=now.monotonic_s,
        lookups_at_change=state.lookups,
    )


def interface_wait_is_over(state: State, config: WatchConfig, now: Moment) -> bool:
    """Return True if this pod is assumed to have no VPN interface."""
    return not config.has_interface or now.monotonic_s - state.interface_seen_s >= _INTERFACE_GRACE_S


def records_are_due(state: State, node: Node, specs: Sequence[RecordSpec], now: Moment) -> bool:
    """Return True if the records have to be read, and Cloudflare may be contacted."""
    records = records_for(state, node)
    return is_outdated(records, specs, now) and now.monotonic_s >= records.not_before_s


def records_for(state: State, node: Node) -> RecordState:
    """Return what is remembered of the records, which says nothing if another node was published."""
    if state.node is not None and state.node.is_same(node):
        return state.records
    return replace(state.records, compared=None)


def is_outdated(records: RecordState, specs: Sequence[RecordSpec], now: Moment) -> bool:
    """Return True if the records were not compared with these, or too long ago."""
    return tuple(specs) != records.compared or now.monotonic_s >= records.verify_at_s


def lookup_wait_s(state: State, config: WatchConfig, now: Moment) -> float:
    """Return 1, 1, 2, 2, 4, 4 … seconds: when a cluster boots, hundreds of pods start, and each list is expensive."""
    growing_s = doubled(1.0, (state.lookups - state.lookups_at_change - 1) // 2, max_s=_DAY_S)
    max_s = max_wait_s(config) if state.node is not None else config.retry_interval.total_seconds()
    if restart_helps(state.heal, state, now):
        # The probe that restarts tailscale should soon learn that it has worked.
        max_s = min(config.retry_interval, config.poll_interval).total_seconds()
    return at_least_min_interval(state, shortened(min(growing_s, max_s), now.jitter), config, now)


def poll_wait_s(state: State, config: WatchConfig, now: Moment) -> float:
    """Return the seconds until the next poll of Headscale or the next read of the records, whichever is sooner."""
    poll_s = lengthened(config.poll_interval.total_seconds(), now.jitter)
    records = state.records
    due_s = records.not_before_s if records.compared is None else max(records.not_before_s, records.verify_at_s)
    left_s = due_s - now.monotonic_s
    if left_s <= 0:
        return poll_s
    return at_least_min_interval(state, min(poll_s, left_s + _MARGIN_S), config, now)


def max_wait_s(config: WatchConfig) -> float:
    """Return the longest wait between two lookups, in seconds."""
    return max(config.retry_interval, config.poll_interval).total_seconds()


def at_least_min_interval(state: State, wait_s: float, config: WatchConfig, now: Moment) -> float:
    """Lengthen a wait: each pass polls Headscale, which is expensive over exec once the node was registered."""
    min_s = config.min_interval.total_seconds() if state.node is not None else 0.0
    return wait_s if wait_s >= min_s else lengthened(min_s, now.jitter)
