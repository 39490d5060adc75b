"""Decide what the records at our name should be; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lifecycle.dns_watch.observation import Interface
from lifecycle.dns_watch.state import WatchConfig
from lifecycle.domain.changes import CreateRecord, DeleteRecord, RecordChange, UpdateRecord
from lifecycle.domain.model import Node, Record, RecordSpec, record_type
from lifecycle.domain.ownership import RecordIdentity


@dataclass(frozen=True, slots=True)
class RecordPlan:
    """What has to change at our name.

    Attributes:
        changes: one transaction; empty if nothing differs.
        in_the_way: foreign records that prevent every change, in ascending order of id.
    """

    changes: tuple[RecordChange, ...] = ()
    in_the_way: tuple[Record, ...] = ()


def desired_records(node: Node, interface: Interface, config: WatchConfig) -> tuple[RecordSpec, ...]:
    """Return an A record and, with DNS_IPV6, an AAAA record for the node.

    Only addresses inside VPN_PREFIXES that this pod's interface has are published; the result can be empty.
    """
    identity = config.records
    addresses = identity.vpn_addresses(node.addresses)
    if interface is not None:
        addresses = tuple(address for address in addresses if address in interface)
    specs = (RecordSpec(identity.name, address, config.ttl_s, identity.mark) for address in addresses)
    return tuple(spec for spec in specs if spec.type == "A" or config.ipv6)


def undecided_types(node: Node, specs: Sequence[RecordSpec], config: WatchConfig) -> frozenset[str]:
    """Return the record types whose address the node has and the interface does not show yet."""
    types = {record_type(address) for address in config.records.vpn_addresses(node.addresses)}
    if not config.ipv6:
        types.discard("AAAA")
    return frozenset(types - {spec.type for spec in specs})


def why_unpublishable(node: Node, config: WatchConfig) -> str:
    """Return why `desired_records` is empty."""
    if any(not config.records.is_vpn_address(address) for address in node.addresses):
        return "the node's address is outside VPN_PREFIXES; set VPN_PREFIXES to the prefixes of Headscale"
    if node.addresses and not config.ipv6:
        return "the node has no IPv4 address that this pod's interface has; for IPv6 alone, set DNS_IPV6=true"
    return "the node has no address that this pod's interface has"


def advice_on_foreign_record(record: Record, *, identity: RecordIdentity) -> str:
    """Return what the operator can do about a foreign record at our name."""
    if record.read_only:
        return (
            "Another Cloudflare product manages it, such as a Workers custom domain. Remove it there (Workers & Pages, "
            "the Worker's settings, Domains & Routes), or choose another TS_HOSTNAME."
        )
    if record.type == "CNAME":
        return "A CNAME allows no address record beside it. Delete it, or give the workload another TS_HOSTNAME."
    if record.type == "NS":
        return "The name is delegated to other name servers. Publish it there, or choose another TS_HOSTNAME."
    if not record.comment:
        return (
            "It has no comment and its address is outside VPN_PREFIXES, so another application may use it. Delete it "
            "or choose another TS_HOSTNAME. To hand it over, set its comment to "
            f'"{identity.mark}": it then points to this pod and is no longer proxied.'
        )
    is_vpn_address = record.address is not None and identity.is_vpn_address(record.address)
    hand_over = "clear its comment or change it" if is_vpn_address else "change its comment"
    return (
        f'To hand it over, {hand_over} to "{identity.mark}". If it belongs to another instance of this program, set '
        "DNS_OWNER to that owner. Otherwise delete it, or choose another TS_HOSTNAME."
    )


def published_successor(
    records: Iterable[Record], successors: Sequence[Node], *, identity: RecordIdentity, node: Node
) -> Node | None:
    """Return the online successor whose address a marked record already contains.

    Args:
        records: everything at our name.
        successors: nodes of later pods.
        identity: criteria for owning a record.
        node: this pod's. All nodes are offline after a restart of Headscale: while this one is, an offline successor
            keeps the name.
    """
    marked = {record.address for record in records if identity.is_marked(record)}
    for successor in successors:
        if (successor.online or not node.online) and marked & set(successor.addresses):
            return successor
    return None


def needs_successor_check(records: Iterable[Record], *, identity: RecordIdentity, node: Node) -> bool:
    """Return True if a marked record contains an address that is not ours, which a successor may have set."""
    return any(identity.is_marked(record) and record.address not in node.addresses for record in records)


def plan_records(
    records: Iterable[Record],
    specs: Sequence[RecordSpec],
    *,
    identity: RecordIdentity,
    ipv6: bool,
    apex: str | None,
    undecided: frozenset[str] = frozenset(),
) -> RecordPlan:
    """Compare the records at our name with the desired ones.

    Args:
        records: everything at our name, in any order.
        specs: the desired records, at most one of each type. A type without one should have no record of ours.
        identity: criteria for owning a record.
        ipv6: AAAA records are managed; if not, only those that carry our mark are deleted.
        apex: the zone's own name, where NS records are normal; None if it is not known.
        undecided: types without a spec that may still get one; their records stay as they are.
    """
    here = sorted(records, key=lambda record: record.id)
    in_the_way = tuple(record for record in here if _blocks(record, identity=identity, ipv6=ipv6, apex=apex))
    if in_the_way:
        return RecordPlan(in_the_way=in_the_way)
    changes: list[RecordChange] = []
    for type_ in ("A", "AAAA"):
        ours = [record for record in here if record.type == type_ and identity.owns_record(record)]
        if type_ == "AAAA" and not ipv6:
            ours = [record for record in ours if identity.is_marked(record)]
        spec = next((spec for spec in specs if spec.type == type_), None)
        if spec is None and type_ in undecided:
            continue
        changes += _plan_type(ours, spec, identity)
    return RecordPlan(changes=tuple(changes))


def _blocks(record: Record, *, identity: RecordIdentity, ipv6: bool, apex: str | None) -> bool:
    if record.name != identity.name:
        return False
    if record.read_only or record.type == "CNAME":
        return True
    match record.type:
        case "NS":
            return record.name != apex
        case "A":
            return not identity.owns_record(record)
        case "AAAA":
            return ipv6 and not identity.owns_record(record)
    return False


def _plan_type(ours: Sequence[Record], spec: RecordSpec | None, identity: RecordIdentity) -> list[RecordChange]:
    if spec is None:
        return [DeleteRecord(record, reason="the node has no address of this type") for record in ours]
    if not ours:
        return [CreateRecord(spec, reason="no record exists")]

    # Two replicas of this program must choose the same record to keep.
    def rank(record: Record) -> tuple[bool, bool, str]:
        return record.address != spec.address, not identity.is_marked(record), record.id

    kept, *rest = sorted(ours, key=rank)
    changes: list[RecordChange] = []
    differing = spec.differences(kept)
    if differing:
        adopted = not identity.is_marked(kept)
        reason = "adopted: it has no comment and a VPN address" if adopted else f"changed: {', '.join(differing)}"
        changes.append(UpdateRecord(kept, spec, reason=reason))
    changes += [DeleteRecord(record, reason="duplicate") for record in rest]
    return changes
