"""Pure functions that decide when dns-watch reads Headscale and the records, and how long it waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lifecycle.dns_watch.healing import usable_key_id
from lifecycle.dns_watch.state import InterfaceAddresses, Moment, Observation, State, WatchConfig
from lifecycle.domain.backoff import add_jitter, doubled, subtract_jitter
from lifecycle.domain.errors import ApiError, TransientError
from lifecycle.domain.model import Node, RecordSpec

_INTERFACE_GRACE_S = 30.0
"""How long a pod may be without a VPN interface before it is assumed to have none."""

_HOUR_S = 3600.0
_DAY_S = 86_400.0

SLOWEST_POLL_S = 300.0
"""The longest interval between polls of a registered node, unless POLL_INTERVAL is longer."""

# Up to SLOWEST_POLL_S, the poll interval is at least this value multiplied by the number of nodes that registered with
# a pre-auth key, as pods do. So up to 1000 idle pods send at most 1 / 0.3 = 3.3 requests per second. Headscale
# checks the API key of each request with bcrypt, which takes about 60 ms of a core.
_POLL_S_PER_NODE = 0.3

# Up to SLOWEST_POLL_S, the poll interval is at least this value multiplied by the seconds that Headscale takes to
# respond. For example, 0.5 s gives 30 s, which is the default of POLL_INTERVAL.
_POLL_S_PER_RESPONSE_S = 60.0

# The weight of a new duration in the moving average is 1 / _SMOOTHING.
_SMOOTHING = 4

_SERVICE_UNAVAILABLE = 503

# A pass starts this much after the records are due. A pass that starts just before they are due would not read them.
_MARGIN_S = 0.001


def with_interface(state: State, interface: InterfaceAddresses, now: Moment) -> State:
    """Remember the VPN interface. After it has changed, dns-watch looks for its node often again."""
    if interface is not None:
        state = replace(state, interface_seen_s=now.monotonic_s)
    if interface == state.interface:
        return state
    return replace(
        state,
        idle_polls=0,
        interface=interface,
        interface_changed_s=now.monotonic_s,
        lookups_at_interface_change=state.lookups,
    )


def interface_wait_is_over(state: State, config: WatchConfig, now: Moment) -> bool:
    """Return True if this pod is assumed to have no VPN interface."""
    return not config.expects_interface or now.monotonic_s - state.interface_seen_s >= _INTERFACE_GRACE_S


def records_are_due(state: State, node: Node, specs: Sequence[RecordSpec], now: Moment) -> bool:
    """Return True if the records have to be read, and Cloudflare may be contacted.

    They have to be read if the node is new, the desired records have changed since the last comparison, or the next
    comparison is due.
    """
    records = state.records
    is_compared = state.node is not None and state.node.is_same(node) and tuple(specs) == records.compared_specs
    is_outdated = not is_compared or now.monotonic_s >= records.verify_at_s
    return is_outdated and now.monotonic_s >= records.not_before_s


def lookup_wait_s(state: State, config: WatchConfig, now: Moment) -> float:
    """Return the wait before dns-watch looks for its node again: 1, 1, 2, 2, 4, 4 … seconds.

    After the interface has changed, it is 1 again. It grows because each lookup lists all nodes, which is expensive.
    """
    max_s = max_wait_s(config) if state.node is not None else config.retry_interval.total_seconds()
    if usable_key_id(state, now) is not None:
        # The liveness probe of the tailscale container fails until dns-watch finds the node again, so look often.
        max_s = min(config.retry_interval, config.poll_interval).total_seconds()
    interval_s = doubled(1.0, (state.lookups - state.lookups_at_interface_change - 1) // 2, max_s=max_s)
    return at_least_min_interval(state, subtract_jitter(interval_s, now.jitter), config, now)


def with_load(state: State, observation: Observation, now: Moment) -> State:
    """Remember how many nodes of pods Headscale has, and how long it takes to respond."""
    if observation.node_read_s is not None:
        change_s = (observation.node_read_s - state.node_read_s) / _SMOOTHING
        state = replace(state, node_read_s=state.node_read_s + change_s)
    if observation.fleet_size is not None:
        state = replace(state, fleet_size=observation.fleet_size)
    if now.monotonic_s >= state.fleet_count_due_s:
        # The first count can be too low, because other pods have not registered yet, so the second follows in 12 to 72
        # minutes. Pods that started together must not list all nodes, which is expensive, at the same time. A failed
        # count is not repeated at once, because Headscale may be too slow to list all nodes.
        wait_s = add_jitter(_DAY_S, now.jitter) if state.fleet_count_due_s else _HOUR_S * (0.2 + now.jitter)
        state = replace(state, fleet_count_due_s=now.monotonic_s + wait_s)
    return state


def is_overloaded(failure: ApiError) -> bool:
    """Return True if Headscale refused a request because it receives too many requests."""
    return isinstance(failure, TransientError) and (failure.throttled or failure.status == _SERVICE_UNAVAILABLE)


def idle_interval_s(state: State, config: WatchConfig) -> float:
    """Return the poll interval while nothing happens: longer if there are many nodes, or if Headscale is slow."""
    fastest_s = config.poll_interval.total_seconds()
    if not state.interface:
        # Without an interface, only polls detect a change of the address.
        return fastest_s
    load_s = max(state.fleet_size * _POLL_S_PER_NODE, state.node_read_s * _POLL_S_PER_RESPONSE_S)
    return max(fastest_s, min(load_s, SLOWEST_POLL_S))


def poll_interval_s(state: State, config: WatchConfig) -> float:
    """Return the poll interval: POLL_INTERVAL after a change or an event, then doubled with each idle poll."""
    doublings = max(state.idle_polls - 1, 0)
    return doubled(config.poll_interval.total_seconds(), doublings, max_s=idle_interval_s(state, config))


def poll_wait_s(state: State, config: WatchConfig, now: Moment) -> float:
    """Return the seconds until the next poll of Headscale or the next read of the records, whichever is sooner."""
    interval_s = poll_interval_s(state, config)
    wait_s = add_jitter(interval_s, now.jitter)
    records = state.records
    due_s = records.not_before_s if records.compared_specs is None else max(records.not_before_s, records.verify_at_s)
    left_s = due_s - now.monotonic_s + _MARGIN_S
    # Each pass polls Headscale. If the records are due before the next poll, or so soon after it that the poll can
    # wait for them, one pass does both.
    if _MARGIN_S < left_s < wait_s or interval_s <= left_s <= add_jitter(interval_s, 1.0):
        wait_s = left_s
    if state.node_expires_at is not None:
        expires_in_s = (state.node_expires_at - now.utc).total_seconds() + _MARGIN_S
        wait_s = min(wait_s, expires_in_s) if expires_in_s > 0 else wait_s
    return at_least_min_interval(state, wait_s, config, now)


def max_wait_s(config: WatchConfig) -> float:
    """Return the longest wait between two lookups, in seconds."""
    return max(config.retry_interval, config.poll_interval).total_seconds()


def at_least_min_interval(state: State, wait_s: float, config: WatchConfig, now: Moment) -> float:
    """Return the wait, or the minimum interval if that is longer. There is no minimum before the first registration."""
    min_s = config.min_poll_interval.total_seconds() if state.node is not None else 0.0
    return wait_s if wait_s >= min_s else add_jitter(min_s, now.jitter)
