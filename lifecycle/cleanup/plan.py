"""Decide what to remove: pure, from what was read to a list of deletions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from lifecycle.domain.changes import DeleteNode, DeleteRecord
from lifecycle.domain.errors import NameTakenError
from lifecycle.domain.model import IpAddress, Node, Record
from lifecycle.domain.ownership import NodeIdentity, RecordIdentity


@dataclass(frozen=True, slots=True)
class NothingKept:
    """No node stays, although one was to: every node of ours is an old one."""

    reason: str


def choose_kept(
    nodes: Iterable[Node],
    *,
    identity: NodeIdentity,
    state: Mapping[str, bytes] | None,
    version: str,
    now: datetime,
) -> Node | NothingKept:
    """Tell which node comes back with the state that tailscale keeps in a Secret.

    Args:
        nodes: every node of the tailnet, in any order.
        identity: by what a node is ours.
        state: the Secret's values; None = there is no such Secret.
        version: of Headscale.
        now: aware UTC.
    """
    if state is None:
        return NothingKept("there is no such Secret")
    # Not `device_ips`: that may be an earlier pod's. The id is decimal, and Headscale's own.
    device_id = state.get("device_id", b"").decode(errors="replace")
    if not device_id:
        return NothingKept("no node is named in it (device_id): none has come up with it, or its last start failed")
    node = next((node for node in nodes if node.id == device_id), None)
    if node is None:
        return NothingKept(f"Headscale has no node {device_id} any more")
    reason = _why_not_kept(node, identity=identity, version=version, now=now)
    return NothingKept(f"node {device_id} {reason}") if reason else node


def _why_not_kept(node: Node, *, identity: NodeIdentity, version: str, now: datetime) -> str:
    if not identity.owns_node(node):
        return "is not ours: the id is another machine's by now, or it was given to somebody else"
    if node.expired(now):
        return "has expired, and not every kind of node comes back from that"
    if version.startswith("0.28") and node.owner is None:
        return "came with a key of no user, and Headscale 0.28 does not let such a node come back"
    return ""


def plan_nodes(nodes: Iterable[Node], *, identity: NodeIdentity, kept: str | None = None) -> list[DeleteNode]:
    """Find what earlier pods of this service left in the tailnet.

    Args:
        nodes: every node of the tailnet, in any order.
        identity: by what a node is ours.
        kept: the id of the node that stays, when its state survives.

    Returns:
        Deletions in ascending order of id; empty when all is well.
    """
    return [
        DeleteNode(node, reason="left by an earlier pod")
        for node in sorted(nodes, key=lambda node: node.sequence)
        if identity.owns_node(node) and node.id != kept
    ]


def foreign_nodes(nodes: Iterable[Node], *, identity: NodeIdentity) -> list[Node]:
    """Nodes that bear our name and are not ours, in ascending order of id; they stay."""
    return [
        node
        for node in sorted(nodes, key=lambda node: node.sequence)
        if identity.bears_our_name(node) and not identity.owns_node(node)
    ]


def refuse_taken_name(records: Iterable[Record], *, identity: RecordIdentity) -> None:
    """Stop before anything is deleted when another owner of this program runs the name.

    Raises:
        NameTakenError: naming the record and the other owner.
    """
    for record in sorted(records, key=lambda record: record.id):
        if identity.marked_by_another(record):
            raise NameTakenError(
                f"{record.name} belongs to another owner: its {record.type} record {record.content} is marked "
                f'"{record.comment}" and ours would be "{identity.mark}". Another namespace or cluster runs this '
                "name. Give this service another TS_HOSTNAME; or, when the other is gone for good, delete that "
                "record or clear its comment; nothing was deleted"
            )


def plan_records(
    records: Iterable[Record],
    *,
    identity: RecordIdentity,
    staying: Sequence[IpAddress],
    others: Iterable[IpAddress],
    leave_one: bool = False,
) -> list[DeleteRecord]:
    """Find the records that point where this service no longer is.

    Args:
        records: everything at our name, in any order.
        identity: by what a record is ours.
        staying: addresses of our node that stays; empty when none does.
        others: addresses that belong to other nodes by now.
        leave_one: keep one stale record of each type for `dns-watch` to repoint, so that the name never
            stops resolving; not one whose address another node has by now.

    Returns:
        Deletions in ascending order of id; empty when all is well.
    """
    taken = set(others)
    ours = [record for record in sorted(records, key=lambda record: record.id) if identity.owns_record(record)]
    # Where a right one stays, the name resolves without a stale one.
    left = {record.type for record in ours if record.address in staying}
    changes = []
    for record in ours:
        if record.address in staying:
            continue
        if leave_one and record.type not in left and record.address not in taken:
            left.add(record.type)
            continue
        elsewhere = record.address in taken
        changes.append(
            DeleteRecord(
                record,
                reason="its address belongs to another node" if elsewhere else "its node is gone",
            )
        )
    return changes
