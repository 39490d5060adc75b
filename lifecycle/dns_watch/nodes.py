"""Pure functions that find this pod's node among the nodes of Headscale, or the reason why it is missing.

A node is ours if this workload owns it (`NodeOwnership.is_owned`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from lifecycle.dns_watch.state import NO_METADATA, InterfaceAddresses, KnownNode, Loss, LossKind, Unregistered
from lifecycle.domain.model import IpAddress, KeyMetadata, Node, describe
from lifecycle.domain.ownership import NodeOwnership


@dataclass(frozen=True, slots=True)
class Hints:
    """What distinguishes this pod's node from other nodes.

    Attributes:
        now: the time by Headscale's clock.
        has_waited: the time for which dns-watch waits for a VPN interface is over.
        known: this pod's node when it was last found; None = never.
    """

    node_ownership: NodeOwnership
    now: datetime
    interface: InterfaceAddresses
    metadata: KeyMetadata = NO_METADATA
    has_waited: bool = False
    known: KnownNode | None = None

    @property
    def metadata_node(self) -> KnownNode | None:
        """The node that the key metadata names; None if it names no node."""
        node_id = self.metadata.node_id
        return None if node_id is None else KnownNode(node_id, self.metadata.machine_key)

    @property
    def own_node(self) -> KnownNode | None:
        """This pod's node when it was last found, or else the node that the key metadata names; None = unknown."""
        return self.known or self.metadata_node

    def metadata_identifies(self, node: Node) -> bool:
        """Return True if this pod's key metadata names the node, or names the key that the node registered with."""
        return (self.metadata_node is not None and self.metadata_node.is_same(node)) or self.used_pod_key(node)

    def used_pod_key(self, node: Node) -> bool:
        """Return True if the node registered with the key that was written for this pod."""
        return node.pre_auth_key is not None and self.metadata.identifies_key(node.pre_auth_key)

    def is_of_another_pod(self, node: Node) -> bool:
        """Return True if another pod registered the node: neither its machine nor its key are this pod's.

        Headscale can assign the address of a deleted node to the node of a later pod, while this pod still has it.
        """
        own_machine = self.own_node.machine_key if self.own_node is not None else None
        is_another_machine = own_machine not in (None, node.machine_key)
        are_keys_known = node.pre_auth_key is not None and self.metadata.pre_auth_key_id is not None
        return is_another_machine and are_keys_known and not self.used_pod_key(node)


def choose_node(nodes: Iterable[Node], hints: Hints) -> Node | Unregistered:
    """Find this pod's node by its VPN address.

    If the pod has no VPN interface, find the node by the key metadata. If the metadata names neither a node nor a
    key, choose the only one of our nodes that is online, after the wait for the interface.
    """
    ordered = sorted(nodes, key=lambda node: node.sequence)
    ours = _our_valid_nodes(ordered, hints.node_ownership, hints.now)
    if hints.interface is not None:
        return _by_interface(ordered, [node for node in ours if not hints.is_of_another_pod(node)], hints.interface)
    if hints.metadata_node is not None or hints.metadata.pre_auth_key_id is not None:
        return _by_metadata(ours, hints)
    if not hints.has_waited:
        return Unregistered("the VPN interface has not appeared yet")
    return _only_node_online(ours, hints.known)


def find_loss(nodes: Sequence[Node], hints: Hints, *, is_gone: bool, is_superseded: bool = False) -> Loss | None:
    """Return why Headscale has no usable node of this pod; None if it may have one.

    Args:
        is_gone: Headscale itself reports that the node `hints.own_node` does not exist, or another machine has its id.
        is_superseded: dns-watch had left the record to another pod of this workload.
    """
    # An empty list can be wrong, so it counts only if Headscale also reports that this pod's node does not exist. If
    # another pod owns the name, an empty list never counts, because Headscale was not asked about that pod's node.
    if not nodes and (not is_gone or is_superseded):
        return None
    own, interface = hints.own_node, set(hints.interface or ())
    ours = [node for node in nodes if hints.node_ownership.is_owned(node)]
    for node in ours:
        is_known = own is not None and own.is_same(node)
        is_own = interface & set(node.addresses) if interface else is_known or hints.metadata_identifies(node)
        if is_own and node.is_expired(hints.now):
            return Loss(LossKind.EXPIRED, KnownNode(node.id, node.machine_key))
    if own is not None and not any(own.is_same(node) for node in nodes):
        # The list alone does not prove the loss, because it can be incomplete for a moment.
        return Loss(LossKind.GONE, own, is_list_empty=not nodes) if is_gone else None
    if is_gone:
        # The list contains the node, so the two responses of Headscale contradict each other.
        return None
    valid = [node for node in ours if not node.is_expired(hints.now)]
    if interface:
        # Our unexpired nodes may belong to later pods. If a foreign node has the address, the settings are wrong.
        is_taken = any(interface & set(node.addresses) for node in nodes)
        return None if valid or is_taken else Loss(LossKind.STRANDED)
    # `choose_node` chose none of the nodes that the key metadata identifies. Any other may be this pod's.
    return Loss(LossKind.NEVER_FOUND) if all(hints.metadata_identifies(node) for node in valid) else None


def successors(nodes: Iterable[Node], *, node_id: str, node_ownership: NodeOwnership, now: datetime) -> list[Node]:
    """Return the nodes of later pods of this workload, which have higher ids, in ascending order of id."""
    return [node for node in _our_valid_nodes(nodes, node_ownership, now) if node.sequence > int(node_id)]


def preferred_nodes(nodes: Iterable[Node], node: Node, *, node_ownership: NodeOwnership, now: datetime) -> list[Node]:
    """Return the nodes of this workload that may own the records instead of this pod's node, in ascending order of id.

    These are the nodes of later pods. If this pod's node is offline, online nodes of earlier pods are included, because
    an earlier pod whose node is online does not leave the records to an offline node.
    """
    return [
        other
        for other in _our_valid_nodes(nodes, node_ownership, now)
        if other.sequence > node.sequence or (other.sequence < node.sequence and other.online and not node.online)
    ]


def _our_valid_nodes(nodes: Iterable[Node], node_ownership: NodeOwnership, now: datetime) -> list[Node]:
    """Return our unexpired nodes, in ascending order of id."""
    ordered = sorted(nodes, key=lambda node: node.sequence)
    return [node for node in ordered if node_ownership.is_owned(node) and not node.is_expired(now)]


def _by_interface(ordered: Sequence[Node], ours: Sequence[Node], interface: Sequence[IpAddress]) -> Node | Unregistered:
    if not interface:
        return Unregistered("the VPN interface has no address inside VPN_PREFIXES yet")
    match [node for node in ours if set(node.addresses) & set(interface)]:
        case [node]:
            return node
        case [_, *_] as several:
            ids = ", ".join(node.id for node in several)
            return Unregistered(f"several nodes of this workload have one of this pod's VPN addresses ({ids})")
    for node in ordered:
        if set(node.addresses) & set(interface):
            return Unregistered(
                f"this pod's VPN address belongs to node {node.id} ({describe(node)}), which is foreign, has expired "
                "or belongs to another pod. Check that TS_HOSTNAME is the same here and in the tailscale container, "
                "and that HEADSCALE_USER is the node's user"
            )
    return Unregistered("Headscale has no node with this pod's VPN address yet")


def _only_node_online(ours: Sequence[Node], known: KnownNode | None) -> Node | Unregistered:
    match [node for node in ours if node.online]:
        case [node]:
            # The node of a later pod would have a higher id.
            if known is None or known.is_same(node) or node.sequence < int(known.id):
                return node
            return Unregistered(f"this pod's node was {known.id}, and the later node {node.id} may be another pod's")
        case []:
            return Unregistered("no node of this workload is online")
        case online:
            ids = ", ".join(node.id for node in online)
            return Unregistered(
                f"several nodes of this workload are online ({ids}), and nothing shows which is this pod's"
            )


def _by_metadata(ours: Sequence[Node], hints: Hints) -> Node | Unregistered:
    # A node that used this pod's key takes precedence over the metadata's node, which may be lost by now.
    with_key = [node for node in ours if hints.used_pod_key(node)]
    metadata_node = hints.metadata_node
    named = [node for node in ours if metadata_node is not None and metadata_node.is_same(node)]
    candidates = with_key or named
    if len(candidates) > 1:
        # With a reusable key, a tailscale container that lost its state registers another node. The earlier node is
        # offline then. After a restart of Headscale, both are offline for a while.
        known = [node for node in candidates if hints.known is not None and hints.known.is_same(node)]
        candidates = [node for node in candidates if node.online] or known
    match candidates:
        case [node]:
            return node
        case [] if not with_key:
            return Unregistered("no node has registered with this pod's pre-auth key yet")
    ids = ", ".join(node.id for node in with_key)
    return Unregistered(f"several nodes registered with this pod's pre-auth key ({ids})")
