"""Decide which node is this pod's, and what its records should become: pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from lifecycle.domain.changes import CreateRecord, DeleteRecord, RecordChange, UpdateRecord
from lifecycle.domain.model import IpAddress, Node, Record, RecordSpec
from lifecycle.domain.ownership import NodeIdentity, RecordIdentity


@dataclass(frozen=True, slots=True)
class Unidentified:
    """It cannot be told which node is this pod's; nothing is to be touched."""

    reason: str


class Missing(StrEnum):
    """What a whole answer of Headscale says about a node of ours that was not found."""

    GONE = "gone"
    """Headscale knows no such node any more, and its list has others."""
    EXPIRED = "expired"
    """It is there, and has to log in again."""
    STRANDED = "stranded"
    """This pod's interface has a VPN address that no node has, and no other node has its name."""
    UNREGISTERED = "unregistered"
    """It may still come: nothing says that it was ever there, and no other node has its name."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A node of ours that was not found.

    Attributes:
        node_id: which it was; None when that is not known.
    """

    kind: Missing
    node_id: str | None = None


@dataclass(frozen=True, slots=True)
class RecordPlan:
    """What the records at our name should become.

    Attributes:
        changes: to be made all together; empty when all is well.
        in_the_way: foreign records because of which nothing is written; ascending order of id.
    """

    changes: tuple[RecordChange, ...] = ()
    in_the_way: tuple[Record, ...] = ()


@dataclass(frozen=True, slots=True)
class Hints:
    """What tells this pod's node from others of the same name.

    Attributes:
        interface: the VPN addresses of this pod's interface; None when there is no such interface.
        pre_auth_key_id: the key that was written for this pod; None when that is not known.
        kept_node_id: the node whose state this pod has; None when that is not known.
        waited: no interface and no note has shown up for so long that none will.
    """

    interface: tuple[IpAddress, ...] | None
    pre_auth_key_id: str | None = None
    kept_node_id: str | None = None
    waited: bool = False

    @property
    def has_metadata(self) -> bool:
        """Whether `cleanup` left word of this pod's key."""
        return self.pre_auth_key_id is not None or self.kept_node_id is not None

    @property
    def distinctive(self) -> bool:
        """Whether there is anything that only this pod can have."""
        return self.interface is not None or self.has_metadata

    def metadata_names(self, node: Node) -> bool:
        """Whether the note says that the node is this pod's."""
        return node.id == self.kept_node_id or self.is_of_key(node)

    def is_of_key(self, node: Node) -> bool:
        """Whether the node came in with the key that was written for this pod."""
        return node.pre_auth_key is not None and node.pre_auth_key.id == self.pre_auth_key_id


def choose_node(nodes: Iterable[Node], *, identity: NodeIdentity, hints: Hints, now: datetime) -> Node | Unidentified:
    """Tell which node is this pod's, by what only this pod can have; never by age.

    Args:
        nodes: every node of the tailnet, in any order.
        identity: by what a node is ours.
        hints: what is known of this pod.
        now: aware UTC.
    """
    everyone = sorted(nodes, key=lambda node: node.sequence)
    ours = [node for node in everyone if identity.owns_node(node) and not node.expired(now)]
    if hints.interface is not None:
        return _by_interface(everyone, ours, hints.interface)
    if hints.has_metadata:
        return _by_metadata(ours, hints)
    if not hints.waited:
        return Unidentified("the VPN interface has not shown up yet")
    online = [node for node in ours if node.online]
    match online:
        case [node]:
            return node
        case []:
            return Unidentified("no node of ours is online")
    ids = ", ".join(node.id for node in online)
    return Unidentified(f"several nodes of ours are online ({ids}), and nothing tells which is this pod's")


def without_successor(found: Node, *, node_id: str) -> Node | Unidentified:
    """Take no later pod's node for this pod's, where nothing but being the only one online speaks for it.

    Args:
        found: the only node of ours that is online.
        node_id: the node that was this pod's when it was known last.
    """
    if found.sequence <= int(node_id):
        return found
    return Unidentified(f"this pod's node was {node_id}, and node {found.id}, which came later, may be another pod's")


def why_missing(
    nodes: Sequence[Node], *, identity: NodeIdentity, hints: Hints, now: datetime, own_id: str | None, not_found: bool
) -> Loss | None:
    """Tell why `choose_node` found none.

    Args:
        nodes: every node of the tailnet, in any order.
        identity: by what a node is ours.
        hints: what is known of this pod.
        now: aware UTC.
        own_id: the node that was this pod's when it was known last; None when it never was.
        not_found: Headscale itself says that there is no node `own_id`.

    Returns:
        None when nothing can be said for sure.
    """
    # A list without anybody says nothing: Headscale may just have started.
    if not nodes:
        return None
    interface = set(hints.interface or ())
    ours = [node for node in nodes if identity.owns_node(node)]
    for node in ours:
        is_this_pods = interface & set(node.addresses) if interface else node.id == own_id or hints.metadata_names(node)
        if is_this_pods and node.expired(now):
            return Loss(Missing.EXPIRED, node.id)
    if own_id is not None and all(node.id != own_id for node in nodes):
        # A list may be short for a moment.
        return Loss(Missing.GONE, own_id) if not_found else None
    if not_found:
        return None
    living = [node for node in ours if not node.expired(now)]
    if interface:
        # With a node of ours left, it is not known whether that is a later pod's.
        taken = any(interface & set(node.addresses) for node in nodes)
        return None if living or taken else Loss(Missing.STRANDED)
    return Loss(Missing.UNREGISTERED) if all(hints.metadata_names(node) for node in living) else None


def _by_interface(
    everyone: Sequence[Node], ours: Sequence[Node], interface: tuple[IpAddress, ...]
) -> Node | Unidentified:
    if not interface:
        return Unidentified("the VPN interface has no address inside VPN_PREFIXES yet")
    holding = [node for node in ours if set(node.addresses) & set(interface)]
    match holding:
        case [node]:
            return node
        case [_, *_]:
            ids = ", ".join(node.id for node in holding)
            return Unidentified(f"several nodes of ours have one of this pod's VPN addresses ({ids})")
    for node in everyone:
        if set(node.addresses) & set(interface):
            return Unidentified(
                f"this pod's VPN address is that of node {node.id} ({describe(node)}), which is not ours or has "
                "expired; is TS_HOSTNAME the same here and in the tailscale container, and HEADSCALE_USER its user?"
            )
    return Unidentified("Headscale has no node with this pod's VPN address yet")


def _by_metadata(ours: Sequence[Node], hints: Hints) -> Node | Unidentified:
    # Whoever used this pod's key goes before the node whose state it was to keep: that may have been lost.
    with_key = [node for node in ours if hints.is_of_key(node)]
    kept = [node for node in ours if node.id == hints.kept_node_id]
    match with_key or kept:
        case [node]:
            return node
        case []:
            return Unidentified("no node has come in with this pod's pre-auth key yet")
    ids = ", ".join(node.id for node in with_key)
    return Unidentified(f"several nodes came in with this pod's pre-auth key ({ids})")


def describe(node: Node) -> str:
    """A node in a few words, for a person."""
    owner = node.user.name if node.user else ", ".join(sorted(node.tags)) or "nobody"
    return f"hostname {node.hostname}, owner {owner}, registered by {node.registered_by}"


def successors(nodes: Iterable[Node], *, node_id: str, identity: NodeIdentity, now: datetime) -> list[Node]:
    """Nodes of ours that came after ours: a later pod of this service; ascending order of id."""
    return [
        node
        for node in sorted(nodes, key=lambda node: node.sequence)
        if identity.owns_node(node) and not node.expired(now) and node.sequence > int(node_id)
    ]


def published_successor(
    records: Iterable[Record], successors: Sequence[Node], *, identity: RecordIdentity, node: Node
) -> Node | None:
    """The online successor whose address a marked record holds already; None when there is none.

    Args:
        records: everything at our name.
        successors: nodes of later pods than this one's.
        identity: by what a record is ours.
        node: this pod's. While Headscale calls it offline too, as all nodes are after a restart, that a
            successor is offline says nothing, and it keeps the name.
    """
    marked = {record.address for record in records if identity.is_marked(record)}
    for successor in successors:
        if (successor.online or not node.online) and marked & set(successor.addresses):
            return successor
    return None


def needs_successor_check(records: Iterable[Record], *, identity: RecordIdentity, node: Node) -> bool:
    """Whether a marked record holds an address that is not ours: only then may a successor have set it."""
    return any(identity.is_marked(record) and record.address not in node.addresses for record in records)


def plan_records(
    records: Iterable[Record],
    specs: Sequence[RecordSpec],
    *,
    identity: RecordIdentity,
    ipv6: bool,
    apex: str | None,
    unsure: frozenset[str] = frozenset(),
) -> RecordPlan:
    """Compare the records at our name with what they should say.

    Args:
        records: everything at our name, in any order.
        specs: what should be, at most one of each type; a type without one should have no record of ours.
        identity: by what a record is ours.
        ipv6: whether AAAA records are kept; if not, only those that carry our mark are removed.
        apex: the zone's own name, where NS records are at home; None when it is not known.
        unsure: types without a spec for which there may have to be one; their records stay as they are.
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
        if spec is None and type_ in unsure:
            continue
        changes += _plan_type(ours, spec, identity)
    return RecordPlan(changes=tuple(changes))


def _blocks(record: Record, *, identity: RecordIdentity, ipv6: bool, apex: str | None) -> bool:
    if record.name != identity.name:
        return False
    match record.type:
        case "CNAME":
            return True
        case "NS":
            return record.name != apex
        case "A":
            return not identity.owns_record(record)
        case "AAAA":
            return ipv6 and not identity.owns_record(record)
    return False


def _plan_type(ours: Sequence[Record], spec: RecordSpec | None, identity: RecordIdentity) -> list[RecordChange]:
    if spec is None:
        return [DeleteRecord(record, reason="the node has no such address") for record in ours]
    if not ours:
        return [CreateRecord(spec, reason="there is none")]

    # The best one stays, by a rule on which two copies of this program agree.
    def rank(record: Record) -> tuple[bool, bool, str]:
        return record.address != spec.address, not identity.is_marked(record), record.id

    kept, *rest = sorted(ours, key=rank)
    changes: list[RecordChange] = []
    differing = spec.differences(kept)
    if differing:
        adopted = not identity.is_marked(kept)
        reason = "adopted from an older script" if adopted else f"{', '.join(differing)} differed"
        changes.append(UpdateRecord(kept, spec, reason=reason))
    changes += [DeleteRecord(record, reason="one record is enough") for record in rest]
    return changes
