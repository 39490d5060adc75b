"""Pure functions that decide what cleanup changes.

Nodes and records are ours if this workload owns them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from lifecycle.domain.changes import DeleteNode, DeleteRecord, WriteFreshKey
from lifecycle.domain.errors import LifecycleError, NameTakenError
from lifecycle.domain.model import IpAddress, KeySpec, Node, Record, User
from lifecycle.domain.ownership import NameKind, NodeOwnership, RecordOwnership, records_at_removed_names


@dataclass(frozen=True, slots=True)
class CleanupConfig:
    """The settings that the plan depends on.

    Attributes:
        key_spec: returns the properties of the pre-auth key to create for a user.
        keep_node: keep the node whose id is in tailscale's state Secret (NODE_POLICY=keep).
        keep_name_resolving: keep one stale record of each type, so that the name still resolves (DNS_CLEANUP=keep).
    """

    main_name_ownership: RecordOwnership
    key_spec: Callable[[User], KeySpec]
    keep_node: bool
    keep_name_resolving: bool
    further_name_ownerships: tuple[RecordOwnership, ...] = ()


@dataclass(frozen=True, slots=True)
class SavedState:
    """What tailscale saved in its state Secret.

    Attributes:
        node_id: the id of its node; "" if there is none.
        machine_key: the node's public machine key; None if it is unknown.
    """

    node_id: str
    machine_key: str | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """What was read from Headscale, Cloudflare and Kubernetes.

    Attributes:
        node_ownership: criteria for owning a node. Its user also owns our keys.
        nodes: all nodes in Headscale.
        records: all records at the main name, and our records at further names; or why they could not be read.
        state: None if the state Secret does not exist or is not needed.
    """

    headscale_version: str
    node_ownership: NodeOwnership
    nodes: tuple[Node, ...]
    records: tuple[Record, ...] | LifecycleError
    state: SavedState | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What cleanup changes. It deletes the nodes first, then creates the key, and then deletes the records.

    Attributes:
        records: the stale records. Directly before the deletion, the stale records are determined again from a new list
            of nodes.
        kept: with NODE_POLICY=keep, the node that is kept, or the reason why all our nodes are deleted; else None.
        foreign: the nodes that have our hostname but are not ours. They are not changed.
    """

    nodes: tuple[DeleteNode, ...]
    key: WriteFreshKey
    records: tuple[DeleteRecord, ...]
    kept: Node | str | None
    foreign: tuple[Node, ...]


def plan_cleanup(observation: Observation, *, config: CleanupConfig, now: datetime) -> Plan:
    """Decide what cleanup changes.

    Args:
        now: the time by Headscale's clock.

    Raises:
        NameTakenError: another DNS_OWNER or workload uses the main name.
    """
    records = () if isinstance(observation.records, LifecycleError) else observation.records
    refuse_taken_name(records, record_ownership=config.main_name_ownership)
    node_ownership = observation.node_ownership
    kept = find_kept_node(observation, now=now) if config.keep_node else None
    kept_node = kept if isinstance(kept, Node) else None
    kept_id = kept_node.id if kept_node else None
    deletions = plan_nodes(observation.nodes, node_ownership=node_ownership, kept_id=kept_id)
    deleted = {change.node.id for change in deletions}
    remaining = [node for node in observation.nodes if node.id not in deleted]
    return Plan(
        nodes=tuple(deletions),
        key=WriteFreshKey(
            config.key_spec(node_ownership.user),
            reason="every start of the pod needs a fresh key",
            node_id=kept_id,
            machine_key=kept_node.machine_key if kept_node else None,
        ),
        records=tuple(plan_records(records, remaining, config=config, node_ownership=node_ownership)),
        kept=kept,
        foreign=tuple(foreign_nodes(observation.nodes, node_ownership=node_ownership)),
    )


def find_kept_node(observation: Observation, *, now: datetime) -> Node | str:
    """Find the node that tailscale will use again, because its id and keys are in the state Secret.

    Returns:
        The node, or the reason why no node is kept.
    """
    state, node_ownership = observation.state, observation.node_ownership
    if state is None:
        return "the Secret does not exist"
    if not state.node_id:
        return "the Secret contains no device_id: no node has registered with it, or the last start of tailscale failed"
    node = next((node for node in observation.nodes if node.id == state.node_id), None)
    if node is None:
        return f"Headscale has no node {state.node_id}"
    reason = ""
    if state.machine_key not in (None, node.machine_key):
        # After Headscale's database was restored from a backup, another node can get the id of this pod's node.
        reason = "is another machine's: its machine key is not the one in the Secret"
    elif not node_ownership.has_our_hostname(node):
        reason = (
            f"has the hostname {node.hostname}, and not {node_ownership.hostname}: TS_HOSTNAME was changed, or it "
            "belongs to another workload"
        )
    elif not node_ownership.is_owned(node):
        reason = f"does not belong to user {node_ownership.user.label}, or was not registered with a pre-auth key"
    elif node.is_expired(now):
        reason = "has expired, and some expired nodes cannot log in again"
    elif observation.headscale_version.startswith("0.28") and node.owner is None:
        reason = "registered with a key that has no user, and Headscale 0.28 does not let such a node log in again"
    return f"node {node.id} {reason}" if reason else node


def plan_nodes(nodes: Iterable[Node], *, node_ownership: NodeOwnership, kept_id: str | None = None) -> list[DeleteNode]:
    """Find the nodes that earlier pods of this workload left behind, except the kept node, in ascending order of id."""
    stale = [node for node in nodes if node_ownership.is_owned(node) and node.id != kept_id]
    return [
        DeleteNode(node, reason="it was left by an earlier pod")
        for node in sorted(stale, key=lambda node: node.sequence)
    ]


def foreign_nodes(nodes: Iterable[Node], *, node_ownership: NodeOwnership) -> list[Node]:
    """Return the nodes that have our hostname and are not ours, in ascending order of id."""
    foreign = [node for node in nodes if node_ownership.has_our_hostname(node) and not node_ownership.is_owned(node)]
    return sorted(foreign, key=lambda node: node.sequence)


def refuse_taken_name(records: Iterable[Record], *, record_ownership: RecordOwnership) -> None:
    """Raise NameTakenError if a record at the name has the comment of another DNS_OWNER or workload."""
    for record in sorted(records, key=lambda record: record.id):
        if record_ownership.has_another_mark(record):
            raise NameTakenError(
                f"{record.name} belongs to another owner or workload: its {record.type} record {record.content} has "
                f'the comment "{record.comment}", and ours would have "{record_ownership.mark}". Another namespace, '
                "cluster or workload uses this name. Nothing was deleted. Set another TS_HOSTNAME. If the other "
                "workload no longer exists, delete the record or clear its comment"
            )


def plan_records(
    records: Iterable[Record], nodes: Iterable[Node], *, config: CleanupConfig, node_ownership: NodeOwnership
) -> list[DeleteRecord]:
    """Find our stale records.

    A record is stale if none of our nodes has its address, or if its name was removed from DNS_ALIASES or
    DNS_SHARED_NAMES. An alias's CNAME record, which points to the main name, is not stale. With `keep_name_resolving`,
    one stale record of each type is kept, and dns-watch updates it. A record with the address of a node that is not
    ours is never kept.

    Args:
        nodes: the nodes in Headscale that cleanup does not delete.
    """
    records = sorted(records, key=lambda record: record.id)
    our_addresses: set[IpAddress] = set()
    other_addresses: set[IpAddress] = set()
    for node in nodes:
        (our_addresses if node_ownership.is_owned(node) else other_addresses).update(node.addresses)
    changes = []
    for record_ownership in (config.main_name_ownership, *config.further_name_ownerships):
        ours = [record for record in records if record_ownership.is_owned(record)]
        # A name resolves without a stale record if it has a valid record, or if other pods share it.
        resolving_types = {record.type for record in ours if record.address in our_addresses}
        may_leave_one = config.keep_name_resolving and record_ownership.kind is not NameKind.SHARED
        for record in ours:
            is_of_another_node = record.address in other_addresses
            if record.address in our_addresses or record_ownership.is_alias(record):
                continue
            if may_leave_one and record.type not in resolving_types and not is_of_another_node:
                resolving_types.add(record.type)
                continue
            reason = (
                "its address belongs to another node" if is_of_another_node else "no remaining node has this address"
            )
            changes.append(DeleteRecord(record, reason))
    unused = records_at_removed_names(records, config.main_name_ownership, config.further_name_ownerships)
    return changes + [DeleteRecord(record, reason="the workload no longer has this name") for record in unused]
