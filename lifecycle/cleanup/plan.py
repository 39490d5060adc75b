"""Decide what cleanup changes; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from lifecycle.domain.changes import DeleteNode, DeleteRecord, WriteFreshKey
from lifecycle.domain.errors import LifecycleError, NameTakenError
from lifecycle.domain.model import IpAddress, KeySpec, Node, Record, User
from lifecycle.domain.ownership import NameKind, NodeIdentity, RecordIdentity, leftovers


@dataclass(frozen=True, slots=True)
class CleanupConfig:
    """The settings that the plan depends on.

    Attributes:
        tags: tags of our pre-auth keys.
        records: criteria for owning a record at the main name.
        further: criteria for owning a record at each further name.
        key_spec: returns the pre-auth key to create for a user.
        keep_node: keep the node that the state Secret names.
        leave_one_record: leave one stale record of each type, so that the name keeps resolving.
    """

    hostname: str
    tags: frozenset[str]
    records: RecordIdentity
    key_spec: Callable[[User], KeySpec]
    keep_node: bool
    leave_one_record: bool
    further: tuple[RecordIdentity, ...] = ()

    def node_identity(self, user: User) -> NodeIdentity:
        """Return the criteria for owning a node."""
        return NodeIdentity(self.hostname, user, self.tags)


@dataclass(frozen=True, slots=True)
class SavedState:
    """What tailscale saved in its state Secret.

    Attributes:
        node_id: "" if the Secret names no node.
        machine_key: in Headscale's notation; None if it is unknown.
    """

    node_id: str
    machine_key: str | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What was read: all nodes of the tailnet, and all records at our name or with the workload's mark.

    Attributes:
        version: of Headscale.
        user: the owner of our nodes and keys.
        records: None if Cloudflare could not be read.
        state: None if the state Secret does not exist or is not needed.
    """

    version: str
    user: User
    nodes: tuple[Node, ...]
    records: tuple[Record, ...] | None
    records_error: LifecycleError | None = None
    state: SavedState | None = None


@dataclass(frozen=True, slots=True)
class NoKeptNode:
    """Why no node is kept although NODE_POLICY is keep. Every node of ours is deleted."""

    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What cleanup changes, in this order.

    Attributes:
        records: the deletions; they are planned again from a new list of nodes directly before they are applied.
        kept: the kept node, or why there is none; None unless NODE_POLICY=keep.
        foreign: nodes with our hostname that are not ours; they stay.
    """

    nodes: tuple[DeleteNode, ...]
    key: WriteFreshKey
    records: tuple[DeleteRecord, ...]
    kept: Node | NoKeptNode | None
    foreign: tuple[Node, ...]


def plan_cleanup(seen: Observation, *, config: CleanupConfig, now: datetime) -> Plan:
    """Decide what is to be changed.

    Args:
        seen: what was read.
        config: the settings.
        now: the time by Headscale's clock.

    Raises:
        NameTakenError: another instance of this program, with another DNS_OWNER, uses the name.
    """
    refuse_taken_name(seen.records or (), record_identity=config.records)
    node_identity = config.node_identity(seen.user)
    kept = None
    if config.keep_node:
        kept = find_kept_node(seen.nodes, node_identity=node_identity, state=seen.state, version=seen.version, now=now)
    kept_node = kept if isinstance(kept, Node) else None
    deletions = plan_nodes(seen.nodes, node_identity=node_identity, kept=kept_node.id if kept_node else None)
    deleted = {change.node.id for change in deletions}
    remaining = [node for node in seen.nodes if node.id not in deleted]
    return Plan(
        nodes=tuple(deletions),
        key=WriteFreshKey(
            config.key_spec(seen.user),
            reason="every start of the pod needs a fresh key",
            kept_node_id=kept_node.id if kept_node else None,
            kept_machine_key=kept_node.machine_key if kept_node else None,
        ),
        records=tuple(plan_stale_records(seen.records or (), remaining, config=config, user=seen.user)),
        kept=kept,
        foreign=tuple(foreign_nodes(seen.nodes, node_identity=node_identity)),
    )


def find_kept_node(
    nodes: Iterable[Node], *, node_identity: NodeIdentity, state: SavedState | None, version: str, now: datetime
) -> Node | NoKeptNode:
    """Find the node that tailscale will use again, because its state Secret contains the node's id and keys."""
    if state is None:
        return NoKeptNode("the Secret does not exist")
    if not state.node_id:
        return NoKeptNode(
            "the Secret contains no device_id: no node has registered with it, or the last start of tailscale failed"
        )
    node = next((node for node in nodes if node.id == state.node_id), None)
    if node is None:
        return NoKeptNode(f"Headscale has no node {state.node_id}")
    if state.machine_key not in (None, node.machine_key):
        # Headscale assigns an id again after its database was restored from a backup.
        return NoKeptNode(f"node {node.id} is another machine's: its machine key is not the one in the Secret")
    reason = _why_not_kept(node, node_identity=node_identity, version=version, now=now)
    return NoKeptNode(f"node {node.id} {reason}") if reason else node


def _why_not_kept(node: Node, *, node_identity: NodeIdentity, version: str, now: datetime) -> str:
    if not node_identity.has_our_name(node):
        return (
            f"has the hostname {node.hostname}, and not {node_identity.hostname}; it was renamed or is another "
            "workload's"
        )
    if not node_identity.owns_node(node):
        return f"does not belong to user {node_identity.user.label}, or was not registered with a pre-auth key"
    if node.is_expired(now):
        return "has expired, and not every kind of node can log in again after that"
    if version.startswith("0.28") and node.owner is None:
        return "registered with a key that has no user, and Headscale 0.28 does not let such a node log in again"
    return ""


def plan_nodes(nodes: Iterable[Node], *, node_identity: NodeIdentity, kept: str | None = None) -> list[DeleteNode]:
    """Find the nodes that earlier pods of this workload left behind, except the kept one, in ascending order of id."""
    stale = [node for node in nodes if node_identity.owns_node(node) and node.id != kept]
    return [
        DeleteNode(node, reason="it was left by an earlier pod")
        for node in sorted(stale, key=lambda node: node.sequence)
    ]


def foreign_nodes(nodes: Iterable[Node], *, node_identity: NodeIdentity) -> list[Node]:
    """Return the nodes that have our hostname and are not ours, in ascending order of id."""
    foreign = [node for node in nodes if node_identity.has_our_name(node) and not node_identity.owns_node(node)]
    return sorted(foreign, key=lambda node: node.sequence)


def refuse_taken_name(records: Iterable[Record], *, record_identity: RecordIdentity) -> None:
    """Stop before anything is changed if another instance of this program, with another DNS_OWNER, uses the name.

    Raises:
        NameTakenError: the message names the record and the other owner.
    """
    for record in sorted(records, key=lambda record: record.id):
        if record_identity.is_marked_by_another(record):
            raise NameTakenError(
                f"{record.name} belongs to another owner or workload: its {record.type} record {record.content} has "
                f'the comment "{record.comment}", and ours would have "{record_identity.mark}". Another namespace, '
                "cluster or workload uses this name. Nothing was deleted. Set another TS_HOSTNAME. If the other "
                "workload no longer exists, delete the record or clear its comment"
            )


def plan_stale_records(
    records: Iterable[Record], remaining: Iterable[Node], *, config: CleanupConfig, user: User
) -> list[DeleteRecord]:
    """Find our stale records: those with an address that no remaining node of ours has, or under a name no longer ours.

    Args:
        remaining: every node of the tailnet that is not deleted.
        user: the owner of our nodes.
    """
    node_identity = config.node_identity(user)
    our_addresses: list[IpAddress] = []
    other_addresses: list[IpAddress] = []
    for node in remaining:
        (our_addresses if node_identity.owns_node(node) else other_addresses).extend(node.addresses)
    records = tuple(records)
    changes = []
    for record_identity in (config.records, *config.further):
        changes += plan_records(
            records,
            record_identity=record_identity,
            our_addresses=our_addresses,
            other_addresses=other_addresses,
            # Under a shared name, other pods answer.
            leave_one=config.leave_one_record and record_identity.kind is not NameKind.SHARED,
        )
    unused = leftovers(records, config.records, config.further)
    return changes + [DeleteRecord(record, reason="the workload no longer has this name") for record in unused]


def plan_records(
    records: Iterable[Record],
    *,
    record_identity: RecordIdentity,
    our_addresses: Sequence[IpAddress],
    other_addresses: Iterable[IpAddress],
    leave_one: bool = False,
) -> list[DeleteRecord]:
    """Find our stale records, with an address that no node of ours has, in ascending order of id.

    Args:
        our_addresses: addresses of our nodes that are not deleted.
        other_addresses: addresses of other nodes.
        leave_one: leave one stale record of each type for dns-watch to update, so that the name keeps resolving.
            A record whose address belongs to another node is never left.
    """
    taken = set(other_addresses)
    ours = [record for record in sorted(records, key=lambda record: record.id) if record_identity.owns_record(record)]
    # If a valid record stays, the name resolves without a stale one.
    resolving = {record.type for record in ours if record.address in our_addresses}
    changes = []
    for record in ours:
        is_taken = record.address in taken
        if record.address in our_addresses or record_identity.is_alias(record):
            continue
        if leave_one and record.type not in resolving and not is_taken:
            resolving.add(record.type)
            continue
        reason = "its address belongs to another node" if is_taken else "no node of this workload has its address"
        changes.append(DeleteRecord(record, reason))
    return changes
