"""Decide what dns-watch does next; pure.

`decide` turns what was remembered and what was observed into changes. `conclude` turns the result of those changes
into the next state. Neither reads a clock, sends a request or logs, and the same arguments give the same decision.
"""

from __future__ import annotations

from dataclasses import replace

from lifecycle.dns_watch.healing import count_loss, heal_loss, with_key, without_loss_count
from lifecycle.dns_watch.records import (
    decide_records,
    desired_records,
    why_unpublishable,
    with_cloudflare_failure,
    with_failure_reason,
    with_problem,
    with_successor,
    with_verified,
)
from lifecycle.dns_watch.schedule import (
    at_least_min_interval,
    calm_interval_s,
    is_overloaded,
    lookup_wait_s,
    max_wait_s,
    poll_wait_s,
    records_for,
    with_interface,
    with_load,
)
from lifecycle.dns_watch.state import (
    Applied,
    Decision,
    FailedRead,
    Failure,
    HealState,
    KnownNode,
    Moment,
    Observation,
    State,
    Unregistered,
    WatchConfig,
)
from lifecycle.domain.backoff import backoff_s, lengthened
from lifecycle.domain.changes import RECORD_CHANGES, Change, CreateRecord, WriteKeyMetadata
from lifecycle.domain.errors import ApiError, AuthError
from lifecycle.domain.events import Event, debug, error, info, warning
from lifecycle.domain.expiry import api_key_warning, is_near, node_warning
from lifecycle.domain.model import KeyMetadata, Node
from lifecycle.domain.releases import untested_warning

_HOUR_S = 3600.0
_DAY_S = 86_400.0


def decide(state: State, seen: Observation, *, config: WatchConfig, now: Moment) -> Decision:
    """Decide what to change and when to poll again."""
    state = with_load(with_interface(state, seen.interface, now), seen, now)
    if isinstance(seen.node, FailedRead):
        return _after_headscale_failure(state, seen.node.error, config, now)
    state, events = _with_identity(state, seen, config)
    state, expiring = _with_api_key_expiry(state, seen, now)
    if isinstance(seen.node, Node):
        decision = _decide_registered(state, seen.node, seen, config, now)
    else:
        decision = _decide_unregistered(state, seen.node, seen, config, now)
    return replace(decision, events=(*events, *expiring, *decision.events))


def conclude(decision: Decision, applied: Applied, *, seen: Observation, config: WatchConfig, now: Moment) -> Decision:
    """Decide what to remember, and when to poll again, after a decision's changes were applied."""
    state = decision.state
    if isinstance(applied.key_error, ApiError):
        return _after_headscale_failure(state, applied.key_error, config, now)
    done = replace(decision, changes=(), events=(), failures=())
    if not decision.changes or decision.failures:
        # `decide` has set the wait already.
        return done
    events: tuple[Event, ...] = ()
    failures: tuple[Failure, ...] = ()
    if applied.key_error is not None:
        events = (error("key_file.unwritable", error=str(applied.key_error)),)
    if applied.key is not None:
        check = seen.key if not isinstance(seen.key, FailedRead) else None
        state = replace(state, heal=with_key(state.heal, applied.key, check=check), failures=0)
    if applied.records_error is not None:
        state, failure = with_cloudflare_failure(state, applied.records_error, config, now)
        failures = (failure,)
    elif isinstance(seen.node, Node) and any(isinstance(change, RECORD_CHANGES) for change in decision.changes):
        created = any(isinstance(change, CreateRecord) for change in decision.changes)
        specs = desired_records(seen.node, seen.interface, config)
        verified = with_verified(state.records, specs, config, now, soon=created, in_the_way=decision.in_the_way)
        state = replace(state, records=verified)
    wait_s = poll_wait_s(state, config, now) if state.is_registered else lookup_wait_s(state, config, now)
    return replace(done, state=state, wait_s=wait_s, events=events, failures=failures)


def failure_event(failed: Failure) -> Event:
    """Return the event about a failed exchange with an upstream."""
    # Refused credentials need an operator. An outage may end by itself.
    level = error if isinstance(failed.error, AuthError) else warning
    return level(
        "pass.failed",
        upstream=failed.error.upstream,
        error=str(failed.error),
        error_type=type(failed.error).__name__,
        failures_in_a_row=failed.failures_in_a_row,
        wait_s=round(failed.wait_s, 1),
    )


def _after_headscale_failure(state: State, failure: ApiError, config: WatchConfig, now: Moment) -> Decision:
    failures = state.failures + 1
    max_s = max(max_wait_s(config), calm_interval_s(state, config))
    pause_s = backoff_s(failures, max_s=max_s, jitter=now.jitter, error=failure)
    wait_s = at_least_min_interval(state, pause_s, config, now)
    state = replace(
        state,
        failures=failures,
        # Otherwise, pods would poll an overloaded server more often.
        calm_polls=state.calm_polls if is_overloaded(failure) else 0,
        heal=without_loss_count(state.heal),
        records=with_failure_reason(state.records, failure),
    )
    return Decision(state, wait_s=wait_s, failures=(Failure(failure, failures, wait_s),))


def _with_identity(state: State, seen: Observation, config: WatchConfig) -> tuple[State, tuple[Event, ...]]:
    """Remember the criteria for owning a node, and report a problem with them once."""
    events: tuple[Event, ...] = ()
    if seen.version and seen.version != state.headscale_version:
        untested = untested_warning(seen.version)
        events = (untested,) if untested is not None else ()
        state = replace(state, headscale_version=seen.version)
    if seen.node_identity is not None:
        user = seen.node_identity.user.name
        if config.user is None and user != state.assumed_user:
            events = (
                *events,
                warning("user.assumed", user=user, reason="it is the only user; set HEADSCALE_USER"),
            )
            state = replace(state, assumed_user=user)
        state = replace(state, node_identity=seen.node_identity, reported_problem="")
    problem = seen.node.error if isinstance(seen.node, Unregistered) else None
    if problem is not None and str(problem) != state.reported_problem:
        failed = error("node.identification_failed", error=str(problem), error_type=type(problem).__name__)
        events = (*events, failed)
        state = replace(state, reported_problem=str(problem))
    return state, events


def _with_api_key_expiry(state: State, seen: Observation, now: Moment) -> tuple[State, tuple[Event, ...]]:
    """Remember when the API key expires, and warn once a day if that is soon."""
    events: tuple[Event, ...] = ()
    if seen.api_key is not None:
        wait_s = _HOUR_S
        if isinstance(seen.api_key, FailedRead):
            events = (debug("api_key.unreadable", error=str(seen.api_key.error)),)
        else:
            state = replace(state, api_key_expires_at=seen.api_key.expires_at)
            # An API key that expires soon may soon be replaced.
            wait_s = _HOUR_S if is_near(seen.api_key.expires_at, now.utc) else _DAY_S
        state = replace(state, api_keys_due_s=now.monotonic_s + lengthened(wait_s, now.jitter))
    expiring = api_key_warning(state.api_key_expires_at, now.utc)
    if expiring is not None and _is_day_over(state.api_key_warned_at_s, now):
        events = (*events, expiring)
        state = replace(state, api_key_warned_at_s=now.monotonic_s)
    return state, events


def _is_day_over(since_s: float | None, now: Moment) -> bool:
    return since_s is None or now.monotonic_s - since_s >= _DAY_S


def _decide_unregistered(
    state: State, missing: Unregistered, seen: Observation, config: WatchConfig, now: Moment
) -> Decision:
    state = replace(
        state,
        is_registered=False,
        calm_polls=0,
        node_expires_at=None,
        records=with_problem(replace(state.records, compared=None), missing.reason),
    )
    events: tuple[Event, ...] = ()
    changes: tuple[Change, ...] = ()
    heal = without_loss_count(state.heal)
    node_identity = state.node_identity
    if missing.loss is not None and node_identity is not None:
        state, events = with_successor(state, missing.successor)
        heal = count_loss(state.heal, missing.loss, is_superseded=missing.successor is not None, now=now)
        if isinstance(seen.key, FailedRead):
            failed = _after_headscale_failure(replace(state, heal=heal), seen.key.error, config, now)
            return replace(failed, events=events)
        heal, lost, change = heal_loss(
            heal,
            missing.loss,
            state=state,
            user=node_identity.user,
            metadata=seen.metadata,
            check=seen.key,
            config=config,
            now=now,
        )
        events = (*events, *lost)
        changes = (change,) if change is not None else ()
    state = replace(
        state,
        heal=heal,
        lookups=state.lookups + 1,
        # If a key is to be created, Headscale has not succeeded until `conclude` knows the result.
        failures=state.failures if changes else 0,
    )
    give_up = _why_give_up(state, missing, config)
    if give_up is None:
        events = (*events, warning("pass.skipped", reason=missing.reason, lookups=state.lookups))
    return Decision(state, changes, wait_s=lookup_wait_s(state, config, now), events=events, give_up=give_up)


def _why_give_up(state: State, missing: Unregistered, config: WatchConfig) -> str | None:
    was_registered = state.node is not None or (missing.loss is not None and missing.loss.node_id is not None)
    if was_registered or not 0 < config.max_retries <= state.lookups:
        return None
    return (
        f"Node {config.hostname} was not found in {state.lookups} lookups: {missing.reason}. Read the log of the "
        "tailscale container. MAX_RETRIES and RETRY_INTERVAL set how long to wait."
    )


def _decide_registered(state: State, node: Node, seen: Observation, config: WatchConfig, now: Moment) -> Decision:
    addresses = [str(address) for address in node.addresses]
    events: list[Event] = []
    if state.node is None or not state.node.is_same(node):
        events.append(info("node.registered", node_id=node.id, hostname=node.hostname, addresses=addresses))
    if state.heal.lost is not None:
        events.append(info("node.returned", after=str(state.heal.lost)))
    expiring = node_warning(node, now.utc)
    if expiring is not None and _is_day_over(state.node_warned_at_s, now):
        events.append(expiring)
        state = replace(state, node_warned_at_s=now.monotonic_s)
    state = replace(
        state,
        node=KnownNode(node.id, node.machine_key),
        is_registered=True,
        node_expires_at=node.expires_at,
        lookups=0,
        lookups_at_change=0,
        failures=0,
        heal=HealState(),
        records=records_for(state, node),
    )
    changes = _metadata_change(node, seen.metadata)
    specs = desired_records(node, seen.interface, config)
    if not specs:
        reason = why_unpublishable(node, config)
        events.append(error("address.unpublishable", node_id=node.id, addresses=addresses, reason=reason))
        decision = Decision(replace(state, records=with_problem(replace(state.records, compared=None), reason)))
    else:
        decision = decide_records(state, node, specs, seen, config, now)
    changes, events = (*changes, *decision.changes), [*events, *decision.events]
    is_calm = not (changes or events or decision.state.superseded_by)
    state = replace(decision.state, calm_polls=state.calm_polls + 1 if is_calm else 0)
    return replace(decision, state=state, changes=changes, wait_s=poll_wait_s(state, config, now), events=tuple(events))


def _metadata_change(node: Node, metadata: KeyMetadata | None) -> tuple[Change, ...]:
    """Store this pod's node in the key metadata, so that dns-watch detects the node's loss after a restart, too."""
    if metadata is None or metadata.pre_auth_key_id is None:
        return ()
    known = replace(metadata, kept_node_id=node.id, kept_machine_key=node.machine_key)
    return (WriteKeyMetadata(known, reason="the node has registered"),) if known != metadata else ()
