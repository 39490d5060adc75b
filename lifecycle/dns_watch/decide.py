"""Pure functions that decide what dns-watch does next.

From the state after the last pass and a new observation, `decide` returns the changes to make. From the result of these
changes, `conclude` returns the next state and wait, without further changes. Neither function reads a clock, sends a
request or logs.
"""

from __future__ import annotations

from dataclasses import replace

from lifecycle.dns_watch import healing, records, schedule
from lifecycle.dns_watch.state import (
    ApplyResult,
    Decision,
    Failure,
    HealState,
    KnownNode,
    Moment,
    Observation,
    State,
    Unregistered,
    WatchConfig,
)
from lifecycle.domain.backoff import add_jitter, dns_watch_delay_s
from lifecycle.domain.changes import Change, WriteKeyMetadata
from lifecycle.domain.errors import ApiError, AuthError, KeyFileError
from lifecycle.domain.events import Event, debug, error, info, warning
from lifecycle.domain.expiry import api_key_warning, expires_soon, node_warning
from lifecycle.domain.model import KeyMetadata, Node, PreAuthKey
from lifecycle.domain.releases import untested_warning

_HOUR_S = 3600.0
_DAY_S = 86_400.0


def decide(state: State, observation: Observation, *, config: WatchConfig, now: Moment) -> Decision:
    """Decide what to change and when to poll again."""
    state = schedule.with_load(schedule.with_interface(state, observation.interface, now), observation, now)
    if isinstance(observation.node, ApiError):
        return _after_headscale_failure(state, observation.node, config, now)
    state, events = _with_version_and_ownership(state, observation, config)
    state, expiring = _with_api_key_expiry(state, observation, now)
    if isinstance(observation.node, Node):
        decision = _decide_registered(state, observation.node, observation, config, now)
    else:
        decision = _decide_unregistered(state, observation.node, observation, config, now)
    return replace(decision, events=(*events, *expiring, *decision.events))


def conclude(decision: Decision, applied: ApplyResult, *, config: WatchConfig, now: Moment) -> Decision:
    """Decide what to remember and when to poll again, from the result of a decision's changes."""
    state = decision.state
    done = replace(decision, changes=(), events=(), failures=())
    if not decision.changes or decision.failures:
        # Without changes, or after a failed read, `decide` has already chosen the next state and the wait.
        return done
    match applied:
        case PreAuthKey():
            state = replace(state, heal=replace(state.heal, key=applied), failures=0)
        case KeyFileError():
            done = replace(done, events=(error("key_file.unwritable", error=str(applied)),))
        case ApiError() if decision.records_after is None:
            return _after_headscale_failure(state, applied, config, now)
        case ApiError():
            state, failure = records.with_cloudflare_failure(state, applied, config, now)
            done = replace(done, failures=(failure,))
        case None if decision.records_after is not None:
            state = replace(state, records=decision.records_after)
    next_wait_s = schedule.poll_wait_s if state.is_registered else schedule.lookup_wait_s
    return replace(done, state=state, wait_s=next_wait_s(state, config, now))


def failure_event(failure: Failure) -> Event:
    """Return the event about a failure of an upstream."""
    # Refused credentials need an operator. An outage may end by itself.
    level = error if isinstance(failure.error, AuthError) else warning
    return level(
        "pass.failed",
        upstream=failure.error.upstream,
        error=str(failure.error),
        error_type=type(failure.error).__name__,
        failures_in_a_row=failure.failures_in_a_row,
        wait_s=round(failure.wait_s, 1),
    )


def _after_headscale_failure(state: State, failure: ApiError, config: WatchConfig, now: Moment) -> Decision:
    failures = state.failures + 1
    max_s = max(schedule.max_wait_s(config), schedule.idle_interval_s(state, config))
    pause_s = dns_watch_delay_s(failures, max_s=max_s, jitter=now.jitter, error=failure)
    wait_s = schedule.at_least_min_interval(state, pause_s, config, now)
    state = replace(
        state,
        failures=failures,
        # The poll interval grows with `idle_polls`. An overload must not shorten this interval.
        idle_polls=state.idle_polls if schedule.is_overloaded(failure) else 0,
        heal=replace(state.heal, observed=None),
        records=records.with_failure_reason(state.records, failure),
    )
    return Decision(state, wait_s=wait_s, failures=(Failure(failure, failures, wait_s),))


def _with_version_and_ownership(
    state: State, observation: Observation, config: WatchConfig
) -> tuple[State, list[Event]]:
    """Remember Headscale's version and the criteria for owning a node, and log each identification problem once."""
    events: list[Event] = []
    if observation.version and observation.version != state.headscale_version:
        untested = untested_warning(observation.version)
        events += [untested] if untested is not None else []
        state = replace(state, headscale_version=observation.version)
    if observation.node_ownership is not None:
        user = observation.node_ownership.user.name
        last_user = state.node_ownership.user.name if state.node_ownership is not None else ""
        if config.user is None and user != last_user:
            events.append(warning("user.assumed", user=user, reason="it is the only user; set HEADSCALE_USER"))
        state = replace(state, node_ownership=observation.node_ownership, reported_problem="")
    problem = observation.node.error if isinstance(observation.node, Unregistered) else None
    if problem is not None and str(problem) != state.reported_problem:
        events.append(error("node.identification_failed", error=str(problem), error_type=type(problem).__name__))
        state = replace(state, reported_problem=str(problem))
    return state, events


def _with_api_key_expiry(state: State, observation: Observation, now: Moment) -> tuple[State, list[Event]]:
    """Remember when the API key expires, and warn once a day if that is soon."""
    events: list[Event] = []
    if observation.api_key is not None:
        wait_s = _HOUR_S
        if isinstance(observation.api_key, ApiError):
            events.append(debug("api_key.unreadable", error=str(observation.api_key)))
        else:
            state = replace(state, api_key_expires_at=observation.api_key.expires_at)
            # If the API key expires soon, an operator may replace it. Then the warnings should end within an hour.
            wait_s = _HOUR_S if expires_soon(observation.api_key.expires_at, now.utc) else _DAY_S
        state = replace(state, api_key_read_due_s=now.monotonic_s + add_jitter(wait_s, now.jitter))
    expiring = api_key_warning(state.api_key_expires_at, now.utc)
    if expiring is not None and now.monotonic_s >= state.api_key_warning_due_s:
        events.append(expiring)
        state = replace(state, api_key_warning_due_s=now.monotonic_s + _DAY_S)
    return state, events


def _decide_unregistered(
    state: State, unregistered: Unregistered, observation: Observation, config: WatchConfig, now: Moment
) -> Decision:
    state = replace(
        state,
        is_registered=False,
        idle_polls=0,
        node_expires_at=None,
        records=replace(state.records, compared_specs=None, reason=unregistered.reason),
    )
    events: tuple[Event, ...] = ()
    change: Change | None = None
    heal = replace(state.heal, observed=None)
    loss, key_check, node_ownership = unregistered.loss, observation.key_check, state.node_ownership
    if loss is not None and node_ownership is not None:
        heal = healing.count_loss(state.heal, loss, now)
        # A successor (the node of a later pod) supersedes this pod at once. If the successor is no longer listed, this
        # pod stays superseded until the loss is confirmed without it.
        if loss.successor is not None or healing.is_confirmed(heal, now):
            state, events = records.with_superseding_node(state, loss.successor)
        events = (*events, *healing.loss_events(heal, loss, reported=state.heal.lost, config=config))
        if isinstance(key_check, ApiError):
            failed = _after_headscale_failure(replace(state, heal=heal), key_check, config, now)
            return replace(failed, events=events)
        if key_check is not None:
            state = replace(state, heal=heal)
            user = node_ownership.user
            heal, problem, change = healing.renew_key(state, loss, key_check, user=user, config=config, now=now)
            events = (*events, error("key_file.unwritable", error=problem)) if problem else events
    changes = () if change is None else (change,)
    state = replace(
        state,
        heal=heal,
        lookups=state.lookups + 1,
        # If a key is to be created, `conclude` resets the failures after the creation.
        failures=state.failures if changes else 0,
    )
    give_up = _reason_to_give_up(state, unregistered, config)
    if give_up is None:
        events = (*events, warning("pass.skipped", reason=unregistered.reason, lookups=state.lookups))
    return Decision(state, changes, wait_s=schedule.lookup_wait_s(state, config, now), events=events, give_up=give_up)


def _reason_to_give_up(state: State, unregistered: Unregistered, config: WatchConfig) -> str | None:
    was_registered = state.node is not None or (unregistered.loss is not None and unregistered.loss.node is not None)
    if was_registered or not 0 < config.max_retries <= state.lookups:
        return None
    return (
        f"Node {config.hostname} was not found in {state.lookups} lookups: {unregistered.reason}. Read the log of the "
        "tailscale container. MAX_RETRIES and RETRY_INTERVAL set how long to wait."
    )


def _decide_registered(
    state: State, node: Node, observation: Observation, config: WatchConfig, now: Moment
) -> Decision:
    addresses = [str(address) for address in node.addresses]
    events: list[Event] = []
    is_known = state.node is not None and state.node.is_same(node)
    if not is_known:
        events.append(info("node.registered", node_id=node.id, hostname=node.hostname, addresses=addresses))
    if state.heal.lost is not None:
        events.append(info("node.returned", after=str(state.heal.lost)))
    expiring = node_warning(node, now.utc)
    if expiring is not None and now.monotonic_s >= state.node_warning_due_s:
        events.append(expiring)
        state = replace(state, node_warning_due_s=now.monotonic_s + _DAY_S)
    state = replace(
        state,
        node=KnownNode(node.id, node.machine_key),
        is_registered=True,
        node_expires_at=node.expires_at,
        lookups=0,
        lookups_at_interface_change=0,
        failures=0,
        heal=HealState(),
        # The records of another node have to be compared again.
        records=state.records if is_known else replace(state.records, compared_specs=None),
    )
    changes = _metadata_change(node, observation.metadata)
    specs = records.desired_records(node, observation.interface, config)
    if not specs:
        reason = records.why_unpublishable(node, config)
        events.append(error("address.unpublishable", node_id=node.id, addresses=addresses, reason=reason))
        decision = Decision(replace(state, records=replace(state.records, compared_specs=None, reason=reason)))
    else:
        decision = records.decide_records(state, node, specs, observation, config, now)
    changes, events = (*changes, *decision.changes), [*events, *decision.events]
    is_idle = not (changes or events or decision.state.superseded_by)
    state = replace(decision.state, idle_polls=state.idle_polls + 1 if is_idle else 0)
    wait_s = schedule.poll_wait_s(state, config, now)
    return replace(decision, state=state, changes=changes, wait_s=wait_s, events=tuple(events))


def _metadata_change(node: Node, metadata: KeyMetadata) -> tuple[Change, ...]:
    """Store the node in existing key metadata, so that dns-watch also detects the loss of the node after a restart."""
    if metadata.pre_auth_key_id is None:
        return ()
    updated = replace(metadata, node_id=node.id, machine_key=node.machine_key)
    return (WriteKeyMetadata(updated, reason="the node has registered"),) if updated != metadata else ()
