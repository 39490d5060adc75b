"""Decide what dns-watch does next; pure.

`decide` turns what was remembered and what was observed into changes. `conclude` turns the result of those changes
into the next state. Neither reads a clock, sends a request or logs, and the same arguments give the same decision.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from lifecycle.dns_watch.healing import count_loss, heal_loss, inconclusive, key_written, node_found, restart_helps
from lifecycle.dns_watch.observation import ApiKeyRead, Failed, Observation, Registered, Unregistered
from lifecycle.dns_watch.publish import (
    cloudflare_failed,
    explained,
    failure_event,
    out_of_sync,
    verified,
    with_records,
    with_successor,
)
from lifecycle.dns_watch.records import (
    desired_records,
    why_unpublishable,
)
from lifecycle.dns_watch.schedule import (
    at_least_min_interval,
    lookup_wait_s,
    max_wait_s,
    poll_wait_s,
    records_for,
    with_interface,
)
from lifecycle.dns_watch.state import (
    Applied,
    Decision,
    Failure,
    KnownNode,
    Moment,
    State,
    WatchConfig,
)
from lifecycle.domain.backoff import backoff_s, lengthened
from lifecycle.domain.changes import Change, CreateRecord, WriteKeyMetadata, WriteRestartMarker
from lifecycle.domain.errors import ApiError
from lifecycle.domain.events import Event, debug, error, info, warning
from lifecycle.domain.expiry import api_key_warning, is_near, node_warning
from lifecycle.domain.model import KeyMetadata, Node

HEADSCALE = "Headscale"

_HOUR_S = 3600.0
_DAY_S = 86_400.0


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
    concluded = _concluded(decision, applied, seen=seen, config=config, now=now)
    state = concluded.state
    key = state.heal.key if restart_helps(state.heal, state, now) else None
    marker = key.id if key is not None else None
    if marker == state.restart_marker:
        return concluded
    return replace(concluded, state=replace(state, restart_marker=marker), marker=WriteRestartMarker(marker))


def _concluded(
    decision: Decision, applied: Applied, *, seen: Observation, config: WatchConfig, now: Moment
) -> Decision:
    state = decision.state
    if isinstance(applied.key_error, ApiError):
        return _headscale_failed(state, applied.key_error, config, now)
    if not decision.changes or decision.failures:
        return replace(decision, changes=(), events=(), succeeded=(), failures=())
    events: tuple[Event, ...] = ()
    failures: tuple[Failure, ...] = ()
    if applied.key_error is not None:
        events = (error("key_file.unwritable", error=str(applied.key_error)),)
    if applied.key is not None:
        check = seen.key if not isinstance(seen.key, Failed) else None
        state = replace(state, heal=key_written(state.heal, applied.key, check=check), failures=0)
    if applied.records_error is not None:
        state, failure = cloudflare_failed(state, applied.records_error, config, now)
        events, failures = (*events, failure_event(failure)), (failure,)
    elif decision.specs is not None:
        created = any(isinstance(change, CreateRecord) for change in decision.changes)
        state = replace(state, records=verified(state.records, decision.specs, config, now, soon=created))
    wait_s = poll_wait_s(state, config, now) if state.is_registered else lookup_wait_s(state, config, now)
    return replace(decision, state=state, changes=(), wait_s=wait_s, events=events, succeeded=(), failures=failures)


def _headscale_failed(state: State, failure: ApiError, config: WatchConfig, now: Moment) -> Decision:
    failures = state.failures + 1
    pause_s = backoff_s(failures, max_s=max_wait_s(config), jitter=now.jitter, error=failure)
    wait_s = at_least_min_interval(state, pause_s, config, now)
    failed = Failure(failure, failures, wait_s)
    state = replace(
        state,
        failures=failures,
        heal=inconclusive(state.heal),
        records=explained(state.records, failure),
    )
    return Decision(state, wait_s=wait_s, events=(failure_event(failed),), failures=(failed,))


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
        records=out_of_sync(replace(state.records, compared=None), missing.reason),
    )
    events: tuple[Event, ...] = ()
    changes: tuple[Change, ...] = ()
    heal = inconclusive(state.heal)
    identity = state.identity
    if missing.loss is not None and identity is not None:
        state, events = with_successor(state, missing.successor)
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
    return Decision(state, changes, wait_s=lookup_wait_s(state, config, now), events=events, give_up=give_up)


def _why_give_up(state: State, reason: str, config: WatchConfig) -> str | None:
    if state.node is not None or not 0 < config.max_retries <= state.lookups:
        return None
    return (
        f"Node {config.hostname} was not found in {state.lookups} lookups: {reason}. Read the log of the tailscale "
        "container. MAX_RETRIES and RETRY_INTERVAL set how long to wait."
    )


def _registered(state: State, found: Registered, seen: Observation, config: WatchConfig, now: Moment) -> Decision:
    node = found.node
    records = records_for(state, node)
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
        state = replace(state, records=out_of_sync(replace(records, compared=None), reason))
        return Decision(state, remembered, wait_s=poll_wait_s(state, config, now), events=events)
    decision = with_records(state, node, specs, seen, config, now)
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
