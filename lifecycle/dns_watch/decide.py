"""Decide what dns-watch does next; pure.

`decide` turns what was remembered and what was observed into changes. `conclude` turns the result of those changes
into the next state. Neither reads a clock, sends a request or logs, and the same arguments give the same decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from lifecycle.dns_watch.healing import count_loss, heal_loss, inconclusive, key_written, node_found, restart_helps
from lifecycle.dns_watch.records import (
    advice_on_foreign_record,
    desired_records,
    plan_records,
    published_successor,
    undecided_types,
    why_unpublishable,
)
from lifecycle.dns_watch.state import (
    ApiKeyRead,
    Applied,
    Change,
    Decision,
    Failed,
    Failure,
    KnownNode,
    Moment,
    Observation,
    RecordsRead,
    RecordState,
    Registered,
    State,
    Unregistered,
    WatchConfig,
)
from lifecycle.domain.backoff import backoff_s, doubled, lengthened, shortened
from lifecycle.domain.changes import CreateRecord, WriteKeyMetadata
from lifecycle.domain.errors import ApiError, AuthError
from lifecycle.domain.events import Event, debug, error, info, warning
from lifecycle.domain.expiry import api_key_warning, is_near, node_warning
from lifecycle.domain.model import KeyMetadata, Node, RecordSpec

HEADSCALE, CLOUDFLARE = "Headscale", "Cloudflare"

_INTERFACE_GRACE_S = 30.0
"""How long a pod may take to create its VPN interface before it is assumed to have none."""

_HOUR_S = 3600.0
_DAY_S = 86_400.0

# Waking up a microsecond before the records are due would cost a request to Headscale.
_MARGIN_S = 0.001


def decide(state: State, seen: Observation, *, config: WatchConfig, now: Moment) -> Decision:
    """Decide what to change and when to poll again.

    Args:
        state: what was remembered after the last pass.
        seen: what this pass read.
        config: the settings.
        now: the current time.
    """
    state = with_interface(state, seen.interface, now)
    if isinstance(seen.node, Failed):
        return _headscale_failed(state, seen.node.error, config, now)
    state, events = _with_identity(state, seen, config)
    state, expiring = _with_api_key_expiry(state, seen, now)
    match seen.node:
        case Registered():
            decision = _registered(state, seen.node, seen, config, now)
        case Unregistered():
            decision = _unregistered(state, seen.node, seen, config, now)
        case _:
            assert_never(seen.node)
    return replace(
        decision,
        events=(*events, *expiring, *decision.events),
        succeeded=(HEADSCALE, *decision.succeeded),
    )


def conclude(decision: Decision, applied: Applied, *, seen: Observation, config: WatchConfig, now: Moment) -> Decision:
    """Decide what to remember, and when to poll again, after a decision's changes were applied.

    Args:
        decision: what `decide` returned.
        applied: what became of its changes.
        seen: what the decision is based on.
        config: the settings.
        now: the time after the changes.
    """
    state = decision.state
    if isinstance(applied.key_error, ApiError):
        return _headscale_failed(state, applied.key_error, config, now)
    if not decision.changes or decision.failures:
        return replace(decision, events=(), succeeded=(), failures=())
    events: tuple[Event, ...] = ()
    failures: tuple[Failure, ...] = ()
    if applied.key_error is not None:
        events = (error("key_file.unwritable", error=str(applied.key_error)),)
    if applied.key is not None:
        check = seen.key if not isinstance(seen.key, Failed) else None
        state = replace(state, heal=key_written(state.heal, applied.key, check=check), failures=0)
    if applied.records_error is not None:
        state, failure = _cloudflare_failed(state, applied.records_error, config, now)
        events, failures = (*events, _failure_event(failure)), (failure,)
    elif decision.specs is not None:
        created = any(isinstance(change, CreateRecord) for change in decision.changes)
        state = replace(state, records=_verified(state.records, decision.specs, config, now, soon=created))
    wait_s = _poll_wait_s(state, config, now) if state.is_registered else _lookup_wait_s(state, config, now)
    return replace(decision, state=state, changes=(), wait_s=wait_s, events=events, succeeded=(), failures=failures)


# --- What both the reads and the decision depend on -------------------------------------------------


def with_interface(state: State, interface: object, now: Moment) -> State:
    """Remember the VPN interface. Lookups become frequent again when it changes."""
    if interface is not None:
        state = replace(state, interface_seen_s=now.monotonic_s)
    if interface == state.interface:
        return state
    return replace(
        state,
        interface=interface,  # type: ignore[arg-type]
        interface_changed_s=now.monotonic_s,
        lookups_at_change=state.lookups,
    )


def interface_wait_is_over(state: State, config: WatchConfig, now: Moment) -> bool:
    """Return True if this pod is assumed to have no VPN interface."""
    return not config.has_interface or now.monotonic_s - state.interface_seen_s >= _INTERFACE_GRACE_S


def records_are_due(state: State, node: Node, specs: Sequence[RecordSpec], now: Moment) -> bool:
    """Return True if the records have to be read, and Cloudflare may be contacted."""
    records = _records_for(state, node)
    return _is_outdated(records, specs, now) and now.monotonic_s >= records.not_before_s


def is_api_key_check_due(state: State, now: Moment) -> bool:
    """Return True if the list of API keys has to be read."""
    return now.monotonic_s >= state.expiry.read_at_s


def _records_for(state: State, node: Node) -> RecordState:
    """Return what is remembered of the records, which says nothing if another node was published."""
    if state.node is not None and state.node.is_same(node):
        return state.records
    return replace(state.records, compared=None)


def _is_outdated(records: RecordState, specs: Sequence[RecordSpec], now: Moment) -> bool:
    return tuple(specs) != records.compared or now.monotonic_s >= records.verify_at_s


# --- Headscale --------------------------------------------------------------------------------------


def _headscale_failed(state: State, failure: ApiError, config: WatchConfig, now: Moment) -> Decision:
    failures = state.failures + 1
    pause_s = backoff_s(failures, max_s=_max_wait_s(config), jitter=now.jitter, error=failure)
    wait_s = _at_least_min_interval(state, pause_s, config, now)
    failed = Failure(failure, failures, wait_s)
    state = replace(
        state,
        failures=failures,
        heal=inconclusive(state.heal),
        records=_explained(state.records, failure),
    )
    return Decision(state, wait_s=wait_s, events=(_failure_event(failed),), failures=(failed,))


def _with_identity(state: State, seen: Observation, config: WatchConfig) -> tuple[State, tuple[Event, ...]]:
    """Remember the criteria for owning a node, and report a problem with them once."""
    state = replace(state, headscale_version=seen.version or state.headscale_version)
    problem = seen.node.error if isinstance(seen.node, Unregistered) else None
    events: tuple[Event, ...] = ()
    if seen.identity is not None:
        user = seen.identity.user.name
        if config.user is None and user != state.assumed_user:
            events = (warning("user.assumed", user=user, reason="it is the only user; set HEADSCALE_USER"),)
            state = replace(state, assumed_user=user)
        state = replace(state, identity=seen.identity)
    if problem is not None and str(problem) != state.reported_problem:
        failed = error("node.identification_failed", error=str(problem), error_type=type(problem).__name__)
        events = (*events, failed)
        state = replace(state, reported_problem=str(problem))
    elif problem is None and seen.identity is not None:
        state = replace(state, reported_problem="")
    return state, events


def _with_api_key_expiry(state: State, seen: Observation, now: Moment) -> tuple[State, tuple[Event, ...]]:
    """Remember when the API key expires, and warn once a day if that is soon."""
    expiry = state.expiry
    events: tuple[Event, ...] = ()
    match seen.api_key:
        case ApiKeyRead(expires_at):
            # A new key may soon be in place.
            wait_s = _HOUR_S if is_near(expires_at, now.utc) else _DAY_S
            expiry = replace(expiry, api_key_expires_at=expires_at, read_at_s=now.monotonic_s + _spread(wait_s, now))
        case Failed(failure):
            events = (debug("api_key.unreadable", error=str(failure)),)
            expiry = replace(expiry, read_at_s=now.monotonic_s + _spread(_HOUR_S, now))
        case None:
            pass
    expiring = api_key_warning(expiry.api_key_expires_at, now.utc)
    if expiring is not None and _is_day_over(expiry.api_key_warned_at_s, now):
        events = (*events, expiring)
        expiry = replace(expiry, api_key_warned_at_s=now.monotonic_s)
    return replace(state, expiry=expiry), events


def _spread(seconds: float, now: Moment) -> float:
    return lengthened(seconds, now.jitter)


def _is_day_over(since_s: float | None, now: Moment) -> bool:
    return since_s is None or now.monotonic_s - since_s >= _DAY_S


def _unregistered(state: State, missing: Unregistered, seen: Observation, config: WatchConfig, now: Moment) -> Decision:
    state = replace(
        state,
        is_registered=False,
        node_expires_at=None,
        records=_out_of_sync(replace(state.records, compared=None), missing.reason),
    )
    events: tuple[Event, ...] = ()
    changes: tuple[Change, ...] = ()
    heal = inconclusive(state.heal)
    identity = state.identity
    if missing.loss is not None and identity is not None:
        state, events = _with_successor(state, missing.successor)
        heal = count_loss(state.heal, missing.loss, is_superseded=missing.successor is not None, now=now)
        if isinstance(seen.key, Failed):
            failed = _headscale_failed(replace(state, heal=heal), seen.key.error, config, now)
            return replace(failed, events=(*events, *failed.events))
        healing = heal_loss(
            heal,
            missing.loss,
            state=state,
            user=identity.user,
            metadata=seen.metadata,
            check=seen.key,
            config=config,
            now=now,
        )
        heal, events = healing.heal, (*events, *healing.events)
        state = replace(state, reported_no_metadata=state.reported_no_metadata or healing.reported_no_metadata)
        changes = (healing.change,) if healing.change is not None else ()
    state = replace(
        state,
        heal=heal,
        lookups=state.lookups + 1,
        # A key that has yet to be created is a request that may fail again.
        failures=state.failures if changes else 0,
    )
    give_up = _why_give_up(state, missing.reason, config)
    if give_up is None:
        events = (*events, warning("pass.skipped", reason=missing.reason, lookups=state.lookups))
    return Decision(state, changes, wait_s=_lookup_wait_s(state, config, now), events=events, give_up=give_up)


def _why_give_up(state: State, reason: str, config: WatchConfig) -> str | None:
    if state.node is not None or not 0 < config.max_retries <= state.lookups:
        return None
    return (
        f"Node {config.hostname} was not found in {state.lookups} lookups: {reason}. Read the log of the tailscale "
        "container. MAX_RETRIES and RETRY_INTERVAL set how long to wait."
    )


def _with_successor(state: State, successor: Node | None) -> tuple[State, tuple[Event, ...]]:
    """Remember for which later pod's node this pod stands down, and report a change."""
    successor_id = successor.id if successor else None
    if successor_id == state.superseded_by:
        return state, ()
    node_id = state.node.id if state.node else None
    state = replace(state, superseded_by=successor_id)
    if successor_id is None:
        return state, (info("node.reinstated", node_id=node_id),)
    reason = "a later pod of this workload has the name; this pod leaves the record alone"
    return state, (warning("node.superseded", node_id=node_id, successor_id=successor_id, reason=reason),)


# --- The record -------------------------------------------------------------------------------------


def _registered(state: State, found: Registered, seen: Observation, config: WatchConfig, now: Moment) -> Decision:
    node = found.node
    records = _records_for(state, node)
    events: tuple[Event, ...] = ()
    if state.node is None or not state.node.is_same(node):
        addresses = [str(address) for address in node.addresses]
        events = (info("node.registered", node_id=node.id, hostname=node.hostname, addresses=addresses),)
    heal, healed = node_found(state.heal)
    state = replace(
        state,
        node=KnownNode(node.id, node.machine_key),
        is_registered=True,
        node_expires_at=node.expires_at,
        lookups=0,
        lookups_at_change=0,
        failures=0,
        heal=heal,
        records=records,
    )
    state, reported = _with_reports_on_node(state, node, config, now)
    events = (*events, *healed, *reported)
    remembered = _metadata_change(node, seen.metadata) if found.from_list else ()
    specs = desired_records(node, seen.interface, config)
    if not specs:
        reason = why_unpublishable(node, config)
        addresses = [str(address) for address in node.addresses]
        events = (*events, error("address.unpublishable", node_id=node.id, addresses=addresses, reason=reason))
        state = replace(state, records=_out_of_sync(replace(records, compared=None), reason))
        return Decision(state, remembered, wait_s=_poll_wait_s(state, config, now), events=events)
    decision = _with_records(state, node, specs, seen, config, now)
    return replace(decision, changes=(*remembered, *decision.changes), events=(*events, *decision.events))


def _with_reports_on_node(
    state: State, node: Node, config: WatchConfig, now: Moment
) -> tuple[State, tuple[Event, ...]]:
    events: tuple[Event, ...] = ()
    expiring = node_warning(node, now.utc)
    if expiring is not None and _is_day_over(state.expiry.node_warned_at_s, now):
        events = (expiring,)
        state = replace(state, expiry=replace(state.expiry, node_warned_at_s=now.monotonic_s))
    if config.warns_of_slow_polling and not state.reported_slow_polling:
        reason = (
            "each poll runs a command in Headscale's pod and lists every node; HEADSCALE_ACCESS=api with an API key "
            "is cheaper and polls at POLL_INTERVAL"
        )
        events = (*events, info("poll.slowed", interval_s=config.poll_interval.total_seconds(), reason=reason))
        state = replace(state, reported_slow_polling=True)
    return state, events


def _metadata_change(node: Node, metadata: KeyMetadata | None) -> tuple[Change, ...]:
    """Store which node is this pod's for the next dns-watch: Headscale can report that this one is gone."""
    if metadata is None or metadata.pre_auth_key_id is None:
        return ()
    known = replace(metadata, kept_node_id=node.id, kept_machine_key=node.machine_key)
    return (WriteKeyMetadata(known, reason="the node has registered"),) if known != metadata else ()


def _with_records(
    state: State, node: Node, specs: tuple[RecordSpec, ...], seen: Observation, config: WatchConfig, now: Moment
) -> Decision:
    addresses = tuple(spec.address for spec in specs)
    if _is_outdated(state.records, specs, now) and state.records.in_sync and addresses != state.records.addresses:
        stale = _out_of_sync(state.records, "the record has not been updated since the address changed")
        state = replace(state, records=stale)
    match seen.records:
        case None:
            return Decision(state, wait_s=_poll_wait_s(state, config, now))
        case Failed(failure):
            state, failed = _cloudflare_failed(state, failure, config, now)
            events = (_failure_event(failed),)
            return Decision(state, wait_s=_poll_wait_s(state, config, now), events=events, failures=(failed,))
        case RecordsRead():
            return replace(_compared(state, node, specs, seen.records, config, now), succeeded=(CLOUDFLARE,))
    assert_never(seen.records)


def _compared(
    state: State, node: Node, specs: tuple[RecordSpec, ...], read: RecordsRead, config: WatchConfig, now: Moment
) -> Decision:
    identity = config.records
    successor = published_successor(read.records, read.successors, identity=identity, node=node)
    state, events = _with_successor(state, successor)
    done = _read(state.records, specs, config, now)
    if successor is not None:
        state = replace(state, records=_out_of_sync(done, f"node {successor.id} of a later pod has the name"))
        return Decision(state, wait_s=_poll_wait_s(state, config, now), events=events)
    plan = plan_records(
        read.records,
        specs,
        identity=identity,
        ipv6=config.ipv6,
        apex=read.apex,
        undecided=undecided_types(node, specs, config),
    )
    if plan.in_the_way:
        for record in plan.in_the_way:
            advice = advice_on_foreign_record(record, identity=identity)
            foreign = error(
                "record.foreign",
                record=record.name,
                type=record.type,
                content=record.content,
                comment=record.comment,
                advice=advice,
            )
            events = (*events, foreign)
            done = _out_of_sync(done, f"a {record.type} record that is not ours exists at {record.name}. {advice}")
        state = replace(state, records=done)
        return Decision(state, wait_s=_poll_wait_s(state, config, now), events=events)
    if not plan.changes:
        state = replace(state, records=_verified(state.records, specs, config, now))
        return Decision(state, wait_s=_poll_wait_s(state, config, now), events=events)
    # Not compared until the change is confirmed.
    pending = replace(state.records, compared=None)
    state = replace(state, records=_out_of_sync(pending, "the record is out of sync and has not been updated yet"))
    return Decision(state, plan.changes, specs, _poll_wait_s(state, config, now), events)


def _read(records: RecordState, specs: Sequence[RecordSpec], config: WatchConfig, now: Moment) -> RecordState:
    wait_s = lengthened(config.verify_interval.total_seconds(), now.jitter)
    return replace(records, compared=tuple(specs), failures=0, verify_at_s=now.monotonic_s + wait_s)


def _verified(
    records: RecordState, specs: Sequence[RecordSpec], config: WatchConfig, now: Moment, *, soon: bool = False
) -> RecordState:
    """Remember that the records are right.

    Args:
        soon: a record was created, and another pod may have created one in the same second: read them again soon.
    """
    interval = min(config.poll_interval, config.verify_interval) if soon else config.verify_interval
    return replace(
        _read(records, specs, config, now),
        verify_at_s=now.monotonic_s + lengthened(interval.total_seconds(), now.jitter),
        in_sync=True,
        reason="",
        addresses=tuple(spec.address for spec in specs),
        verified_at_s=now.monotonic_s,
    )


def _out_of_sync(records: RecordState, reason: str) -> RecordState:
    return replace(records, in_sync=False, reason=reason)


def _explained(records: RecordState, failure: ApiError) -> RecordState:
    """Name the failure as the reason if the record is not in sync anyway."""
    return records if records.in_sync else replace(records, reason=str(failure))


def _cloudflare_failed(state: State, failure: ApiError, config: WatchConfig, now: Moment) -> tuple[State, Failure]:
    """Leave Cloudflare alone for a while, or for as long as it requested."""
    failures = state.records.failures + 1
    max_s = config.verify_interval.total_seconds()
    wait_s = backoff_s(failures, max_s=max_s, jitter=now.jitter, error=failure)
    records = replace(
        _explained(state.records, failure),
        compared=None,
        failures=failures,
        not_before_s=now.monotonic_s + wait_s,
    )
    return replace(state, records=records), Failure(failure, failures, wait_s)


def _failure_event(failed: Failure) -> Event:
    # Refused credentials need an operator. An outage may end by itself.
    level = error if isinstance(failed.error, AuthError) else warning
    return level(
        "pass.failed",
        upstream=failed.error.upstream,
        error=str(failed.error),
        error_type=type(failed.error).__name__,
        failures_in_a_row=failed.failures,
        wait_s=round(failed.wait_s, 1),
    )


# --- When to poll again -----------------------------------------------------------------------------


def _lookup_wait_s(state: State, config: WatchConfig, now: Moment) -> float:
    """Return 1, 1, 2, 2, 4, 4 … seconds: when a cluster boots, hundreds of pods start, and each list is expensive."""
    growing_s = doubled(1.0, (state.lookups - state.lookups_at_change - 1) // 2, max_s=_DAY_S)
    max_s = _max_wait_s(config) if state.node is not None else config.retry_interval.total_seconds()
    if restart_helps(state.heal, state, now):
        # The probe that restarts tailscale should soon learn that it has worked.
        max_s = min(config.retry_interval, config.poll_interval).total_seconds()
    return _at_least_min_interval(state, shortened(min(growing_s, max_s), now.jitter), config, now)


def _poll_wait_s(state: State, config: WatchConfig, now: Moment) -> float:
    """Return the seconds until the next poll of Headscale or the next read of the records, whichever is sooner."""
    poll_s = lengthened(config.poll_interval.total_seconds(), now.jitter)
    records = state.records
    due_s = records.not_before_s if records.compared is None else max(records.not_before_s, records.verify_at_s)
    left_s = due_s - now.monotonic_s
    if left_s <= 0:
        return poll_s
    return _at_least_min_interval(state, min(poll_s, left_s + _MARGIN_S), config, now)


def _max_wait_s(config: WatchConfig) -> float:
    return max(config.retry_interval, config.poll_interval).total_seconds()


def _at_least_min_interval(state: State, wait_s: float, config: WatchConfig, now: Moment) -> float:
    """Lengthen a wait: each pass polls Headscale, which is expensive over exec once the node was registered."""
    min_s = config.min_interval.total_seconds() if state.node is not None else 0.0
    return wait_s if wait_s >= min_s else lengthened(min_s, now.jitter)
