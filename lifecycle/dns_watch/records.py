"""Pure functions that decide which records to publish, what to change, and what to remember about the records.

Our names are the workload's main name and further names. A marked record has our mark as its comment. If a foreign
record blocks its name (`domain/foreign.py`), nothing is changed at this name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from lifecycle.dns_watch.state import (
    Decision,
    Failure,
    InterfaceAddresses,
    Moment,
    Observation,
    RecordsRead,
    RecordState,
    State,
    WatchConfig,
)
from lifecycle.domain.backoff import add_jitter, dns_watch_delay_s
from lifecycle.domain.changes import CreateRecord, DeleteRecord, RecordChange, UpdateRecord
from lifecycle.domain.errors import ApiError
from lifecycle.domain.events import Event, error, info, warning
from lifecycle.domain.foreign import advice_on_foreign_record, blocks
from lifecycle.domain.model import IpAddress, Node, Record, RecordSpec, record_type
from lifecycle.domain.ownership import NameKind, RecordOwnership, records_at_removed_names


@dataclass(frozen=True, slots=True)
class RecordPlan:
    """The changes to the records at our names.

    Attributes:
        changes: empty if the records are right.
        in_the_way: the records that block their names, in ascending order of id.
    """

    changes: tuple[RecordChange, ...] = ()
    in_the_way: tuple[Record, ...] = ()


def desired_records(node: Node, interface: InterfaceAddresses, config: WatchConfig) -> tuple[RecordSpec, ...]:
    """Return the records that should exist; empty if the node has no address that can be published.

    An alias has a CNAME record. Every other name has an A record, and with DNS_IPV6 an AAAA record. An address is
    published only if it is inside VPN_PREFIXES and, if the pod has a VPN interface, on this interface.
    """
    addresses = [
        address
        for address in config.main_name_ownership.vpn_addresses(node.addresses)
        if (interface is None or address in interface) and (config.ipv6 or record_type(address) == "A")
    ]
    if not addresses:
        return ()
    return tuple(
        RecordSpec(record_ownership.name, content, config.ttl_s, record_ownership.mark)
        for record_ownership in config.record_ownerships
        for content in ([record_ownership.target] if record_ownership.kind is NameKind.ALIAS else addresses)
    )


def why_unpublishable(node: Node, config: WatchConfig) -> str:
    """Return why `desired_records` is empty."""
    if any(not config.main_name_ownership.is_vpn_address(address) for address in node.addresses):
        return "the node's address is outside VPN_PREFIXES; set VPN_PREFIXES to the prefixes of Headscale"
    if node.addresses and not config.ipv6 and all(record_type(address) == "AAAA" for address in node.addresses):
        return "the node has no IPv4 address; to publish only IPv6, set DNS_IPV6=true"
    return "this pod's interface has none of the addresses of the node that can be published"


def published_preferred_node(
    records: Iterable[Record], preferred: Sequence[Node], node: Node, config: WatchConfig
) -> Node | None:
    """Return the online preferred node whose address is already in a marked record.

    Args:
        records: all records at our names.
        preferred: the result of `preferred_nodes`.
        node: this pod's node. If it is offline, an offline successor counts too, because all nodes are offline after a
            restart of Headscale.
    """
    marked = _marked_addresses(records, config)
    for other in preferred:
        if (other.online or not node.online) and marked & set(other.addresses):
            return other
    return None


def needs_preferred_nodes(records: Iterable[Record], node: Node, config: WatchConfig) -> bool:
    """Return True if a marked record has an address of another node, because a preferred node may have written it."""
    return not _marked_addresses(records, config) <= set(node.addresses)


def _marked_addresses(records: Iterable[Record], config: WatchConfig) -> set[IpAddress]:
    return {
        record.address
        for record in records
        if record.address is not None
        and any(record_ownership.is_marked(record) for record_ownership in config.record_ownerships)
    }


def plan_records(read: RecordsRead, node: Node, specs: Sequence[RecordSpec], config: WatchConfig) -> RecordPlan:
    """Compare the records at all names with the desired ones. If the main name is blocked, aliases are not changed."""
    changes: list[RecordChange] = []
    in_the_way: list[Record] = []
    for record_ownership in config.record_ownerships:
        if record_ownership.kind is NameKind.ALIAS and any(
            record.name == record_ownership.target for record in in_the_way
        ):
            # The alias would point to the foreign record at the main name.
            continue
        plan = plan_records_at_name(read, node, specs, record_ownership=record_ownership, config=config)
        changes += plan.changes
        in_the_way += plan.in_the_way
    unused = records_at_removed_names(read.records, config.main_name_ownership, config.further_name_ownerships)
    changes += (DeleteRecord(record, reason="the workload no longer has this name") for record in unused)
    return RecordPlan(tuple(changes), tuple(in_the_way))


def plan_records_at_name(
    read: RecordsRead,
    node: Node,
    specs: Sequence[RecordSpec],
    *,
    record_ownership: RecordOwnership,
    config: WatchConfig,
) -> RecordPlan:
    """Compare the records at one name with the desired ones.

    Args:
        read: at least all records at the name, in any order.
        specs: the desired records, at most one of each type at a name. Our records of other types are deleted, except
            A or AAAA records while the node's address of this type is not on the interface yet. Without DNS_IPV6, AAAA
            records are deleted only if they are marked.
        record_ownership: criteria for owning a record at the name.
    """
    ordered = sorted(read.records, key=lambda record: record.id)
    in_the_way = tuple(
        record
        for record in ordered
        if blocks(record, record_ownership=record_ownership, ipv6=config.ipv6, apex=read.apex)
    )
    if in_the_way:
        return RecordPlan(in_the_way=in_the_way)
    node_types: set[str] = set()
    # An alias has a CNAME record. DNS allows no address record beside it.
    if record_ownership.kind is not NameKind.ALIAS:
        node_types = {record_type(address) for address in config.main_name_ownership.vpn_addresses(node.addresses)}
        node_types -= {"AAAA"} if not config.ipv6 else set()
    changes: list[RecordChange] = []
    for type_ in ("A", "AAAA", "CNAME"):
        at_name = [record for record in ordered if (record.name, record.type) == (record_ownership.name, type_)]
        ours = [record for record in at_name if record_ownership.is_owned(record)]
        if type_ == "AAAA" and not config.ipv6:
            ours = [record for record in ours if record_ownership.is_marked(record)]
        spec = next((spec for spec in specs if (spec.name, spec.type) == (record_ownership.name, type_)), None)
        if spec is None and type_ in node_types:
            # An interface that still lacks the address at the next read will not get it soon.
            ours = [record for record in ours if read.is_repeated and record.address not in node.addresses]
        if spec is not None and any(spec.has_content_of(record) for record in at_name if record not in ours):
            # Another workload's record has the address, perhaps a stale one. Cloudflare refuses a second such record.
            spec = None
        changes += _plan_type(ours, spec, record_ownership)
    return RecordPlan(changes=tuple(changes))


def _plan_type(
    ours: Sequence[Record], spec: RecordSpec | None, record_ownership: RecordOwnership
) -> list[RecordChange]:
    if spec is None:
        return [DeleteRecord(record, reason="the name should have no record of this type") for record in ours]
    if not ours:
        return [CreateRecord(spec, reason="no record exists")]

    # If two pods of a workload run at the same time, both must keep the same record, so the order must not depend on
    # the pod.
    def rank(record: Record) -> tuple[bool, bool, str]:
        return not spec.has_content_of(record), not record_ownership.is_marked(record), record.id

    kept, *rest = sorted(ours, key=rank)
    changes: list[RecordChange] = []
    differing = spec.differences(kept)
    if differing:
        adopted = not record_ownership.is_marked(kept)
        reason = "adopted: it has no comment and a VPN address" if adopted else f"changed: {', '.join(differing)}"
        changes.append(UpdateRecord(kept, spec, reason=reason))
    changes += [DeleteRecord(record, reason="duplicate") for record in rest]
    return changes


def decide_records(
    state: State, node: Node, specs: tuple[RecordSpec, ...], observation: Observation, config: WatchConfig, now: Moment
) -> Decision:
    """Decide what to change at our names."""
    addresses = _main_addresses(specs, config)
    if state.records.in_sync and addresses != state.records.addresses:
        reason = "the record has not been updated since the address changed"
        state = replace(state, records=replace(state.records, reason=reason))
    read = observation.records
    if isinstance(read, ApiError):
        state, failure = with_cloudflare_failure(state, read, config, now)
        return Decision(state, failures=(failure,))
    if read is None:
        return Decision(state)
    preferred = published_preferred_node(read.records, read.preferred_nodes, node, config)
    state, events = with_superseding_node(state, preferred)
    if preferred is not None:
        records = _with_comparison(state.records, specs, config.verify_interval, now)
        records = replace(records, reason=f"node {preferred.id} of {_describe_pod(preferred, state)} owns the name")
        return Decision(replace(state, records=records), events=events)
    plan = plan_records(read, node, specs, config)
    for record in plan.in_the_way:
        foreign = error(
            "record.foreign",
            record=record.name,
            type=record.type,
            content=record.content,
            comment=record.comment,
            advice=_advice(record, config),
        )
        events = (*events, foreign)
    after = _records_after(state.records, plan, specs, config, now)
    if not plan.changes:
        return Decision(replace(state, records=after), events=events)
    # Read the records again after a failure. After a success, `decide.conclude` remembers `records_after` instead.
    reason = "the record is out of sync and has not been updated yet"
    state = replace(state, records=replace(state.records, compared_specs=None, reason=reason))
    return Decision(state, plan.changes, records_after=after, events=events)


def _main_addresses(specs: Iterable[RecordSpec], config: WatchConfig) -> tuple[IpAddress, ...]:
    return tuple(
        spec.content
        for spec in specs
        if spec.name == config.main_name_ownership.name and not isinstance(spec.content, str)
    )


def _advice(record: Record, config: WatchConfig) -> str:
    record_ownership = next(
        record_ownership for record_ownership in config.record_ownerships if record_ownership.name == record.name
    )
    return advice_on_foreign_record(record, record_ownership=record_ownership)


def _with_comparison(
    records: RecordState, specs: tuple[RecordSpec, ...], interval: timedelta, now: Moment
) -> RecordState:
    """Remember that the records were compared with these specs, and when to read them again."""
    wait_s = add_jitter(interval.total_seconds(), now.jitter)
    return replace(records, compared_specs=specs, failures=0, verify_at_s=now.monotonic_s + wait_s)


def _records_after(
    records: RecordState, plan: RecordPlan, specs: tuple[RecordSpec, ...], config: WatchConfig, now: Moment
) -> RecordState:
    """Return what to remember after the plan's changes: the records are right, except at blocked names.

    If this pod creates a record, the records are read again after one poll interval, because another pod may create the
    same record.
    """
    interval = config.verify_interval
    if any(isinstance(change, CreateRecord) for change in plan.changes):
        interval = min(config.poll_interval, interval)
    records = _with_comparison(records, specs, interval, now)
    if all(record.name != config.main_name_ownership.name for record in plan.in_the_way):
        records = replace(records, addresses=_main_addresses(specs, config))
    if plan.in_the_way:
        record = plan.in_the_way[-1]
        problem = f"a {record.type} record that is not ours exists at {record.name}. {_advice(record, config)}"
        return replace(records, reason=problem)
    return replace(records, reason="", verified_at_s=now.monotonic_s, last_failure="")


def _describe_pod(node: Node, state: State) -> str:
    is_earlier = state.node is not None and node.sequence < int(state.node.id)
    return "an online earlier pod" if is_earlier else "a later pod"


def with_failure_reason(records: RecordState, failure: ApiError) -> RecordState:
    """Remember the failure. If the records are out of sync, it is the reason."""
    return replace(records, reason=records.reason and str(failure), last_failure=str(failure))


def with_cloudflare_failure(state: State, failure: ApiError, config: WatchConfig, now: Moment) -> tuple[State, Failure]:
    """Remember a failure of Cloudflare, and when the next request to Cloudflare may be sent."""
    failures = state.records.failures + 1
    max_s = config.verify_interval.total_seconds()
    wait_s = dns_watch_delay_s(failures, max_s=max_s, jitter=now.jitter, error=failure)
    records = replace(
        with_failure_reason(state.records, failure),
        compared_specs=None,
        failures=failures,
        not_before_s=now.monotonic_s + wait_s,
    )
    return replace(state, records=records), Failure(failure, failures, wait_s)


def with_superseding_node(state: State, node: Node | None) -> tuple[State, tuple[Event, ...]]:
    """Remember the node to which this pod leaves the records (None = none), and report if it has changed."""
    superseded_by = node.id if node else None
    if superseded_by == state.superseded_by:
        return state, ()
    node_id = state.node.id if state.node else None
    state = replace(state, superseded_by=superseded_by)
    if node is None:
        return state, (info("node.reinstated", node_id=node_id),)
    reason = f"{_describe_pod(node, state)} of this workload owns the name; this pod leaves the record alone"
    return state, (warning("node.superseded", node_id=node_id, superseded_by=superseded_by, reason=reason),)
