"""Decide what happens to the records at our name, and what to remember of them; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from lifecycle.dns_watch.observation import Failed, Observation, RecordsRead
from lifecycle.dns_watch.records import advice_on_foreign_record, plan_records, published_successor, undecided_types
from lifecycle.dns_watch.schedule import is_outdated, poll_wait_s
from lifecycle.dns_watch.state import Decision, Failure, Moment, RecordState, State, WatchConfig
from lifecycle.domain.backoff import backoff_s, lengthened
from lifecycle.domain.errors import ApiError, AuthError
from lifecycle.domain.events import Event, error, info, warning
from lifecycle.domain.model import Node, RecordSpec

CLOUDFLARE = "Cloudflare"


def with_records(
    state: State, node: Node, specs: tuple[RecordSpec, ...], seen: Observation, config: WatchConfig, now: Moment
) -> Decision:
    """Decide what to change at our name, from the records that this pass read if they were due."""
    addresses = tuple(spec.address for spec in specs)
    if is_outdated(state.records, specs, now) and state.records.in_sync and addresses != state.records.addresses:
        stale = out_of_sync(state.records, "the record has not been updated since the address changed")
        state = replace(state, records=stale)
    match seen.records:
        case None:
            return Decision(state, wait_s=poll_wait_s(state, config, now))
        case Failed(failure):
            state, failed = cloudflare_failed(state, failure, config, now)
            events = (failure_event(failed),)
            return Decision(state, wait_s=poll_wait_s(state, config, now), events=events, failures=(failed,))
        case RecordsRead():
            return replace(_compared(state, node, specs, seen.records, config, now), succeeded=(CLOUDFLARE,))
    assert_never(seen.records)


def _compared(
    state: State, node: Node, specs: tuple[RecordSpec, ...], read: RecordsRead, config: WatchConfig, now: Moment
) -> Decision:
    identity = config.records
    successor = published_successor(read.records, read.successors, identity=identity, node=node)
    state, events = with_successor(state, successor)
    done = _read(state.records, specs, config, now)
    if successor is not None:
        state = replace(state, records=out_of_sync(done, f"node {successor.id} of a later pod has the name"))
        return Decision(state, wait_s=poll_wait_s(state, config, now), events=events)
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
            done = out_of_sync(done, f"a {record.type} record that is not ours exists at {record.name}. {advice}")
        state = replace(state, records=done)
        return Decision(state, wait_s=poll_wait_s(state, config, now), events=events)
    if not plan.changes:
        state = replace(state, records=verified(state.records, specs, config, now))
        return Decision(state, wait_s=poll_wait_s(state, config, now), events=events)
    # Not compared until the change is confirmed.
    pending = replace(state.records, compared=None)
    state = replace(state, records=out_of_sync(pending, "the record is out of sync and has not been updated yet"))
    return Decision(state, plan.changes, specs, poll_wait_s(state, config, now), events)


def _read(records: RecordState, specs: Sequence[RecordSpec], config: WatchConfig, now: Moment) -> RecordState:
    wait_s = lengthened(config.verify_interval.total_seconds(), now.jitter)
    return replace(records, compared=tuple(specs), failures=0, verify_at_s=now.monotonic_s + wait_s)


def verified(
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


def out_of_sync(records: RecordState, reason: str) -> RecordState:
    """Remember that the record is not right, or not known to be right."""
    return replace(records, in_sync=False, reason=reason)


def explained(records: RecordState, failure: ApiError) -> RecordState:
    """Name the failure as the reason if the record is not in sync anyway."""
    return records if records.in_sync else replace(records, reason=str(failure))


def cloudflare_failed(state: State, failure: ApiError, config: WatchConfig, now: Moment) -> tuple[State, Failure]:
    """Leave Cloudflare alone for a while, or for as long as it requested."""
    failures = state.records.failures + 1
    max_s = config.verify_interval.total_seconds()
    wait_s = backoff_s(failures, max_s=max_s, jitter=now.jitter, error=failure)
    records = replace(
        explained(state.records, failure),
        compared=None,
        failures=failures,
        not_before_s=now.monotonic_s + wait_s,
    )
    return replace(state, records=records), Failure(failure, failures, wait_s)


def failure_event(failed: Failure) -> Event:
    """Return the event about a failed exchange with an upstream."""
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


def with_successor(state: State, successor: Node | None) -> tuple[State, tuple[Event, ...]]:
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
