"""Read everything that a decision of dns-watch needs; nothing is changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.dns_watch.decide import HEADSCALE
from lifecycle.dns_watch.healing import count_loss, is_key_check_due
from lifecycle.dns_watch.nodes import Hints, choose_node, successors, why_missing, without_successor
from lifecycle.dns_watch.observation import (
    ApiKeyRead,
    Failed,
    Interface,
    KeyCheck,
    Missing,
    Observation,
    RecordsRead,
    Registered,
    Unregistered,
)
from lifecycle.dns_watch.records import desired_records, needs_successor_check
from lifecycle.dns_watch.schedule import interface_wait_is_over, is_api_key_check_due, records_are_due, with_interface
from lifecycle.dns_watch.state import KnownNode, Moment, State, WatchConfig
from lifecycle.domain.errors import (
    ApiError,
    AuthError,
    KeyFileError,
    NotFoundError,
    TransientError,
    UserError,
)
from lifecycle.domain.model import KeyMetadata, Node, User
from lifecycle.domain.ownership import NodeIdentity, choose_user
from lifecycle.keyfile.reader import KeyFileReader


class Sources(Protocol):
    """Where dns-watch reads from."""

    @property
    def headscale(self) -> HeadscaleReader:
        """The nodes and keys."""

    @property
    def cloudflare(self) -> CloudflareReader:
        """The records."""

    @property
    def key_file(self) -> KeyFileReader:
        """The key and its metadata."""


@dataclass(frozen=True, slots=True)
class _Lookup:
    node: Registered | Unregistered
    identity: NodeIdentity | None = None
    metadata: KeyMetadata | None = None


def observe(
    state: State, sources: Sources, interface: Interface, *, config: WatchConfig, clock: Callable[[], Moment]
) -> Observation:
    """Read what is due to be read. A failed read is part of the result, never taken for "nothing".

    Args:
        state: what was remembered after the last pass; it determines what is due.
        sources: where to read from.
        interface: the VPN addresses of this pod's interface now.
        config: the settings.
        clock: returns the current time, which is that of Headscale's clock after its first response.
    """
    state = with_interface(state, interface, clock())
    headscale = sources.headscale
    try:
        lookup = _look_up(state, sources, config=config, clock=clock)
    except ApiError as error:
        return Observation(interface, Failed(error))
    now = clock()
    version = ""
    # Only for people: the node was found without it.
    with suppress(ApiError):
        version = headscale.version()
    api_key = _read_api_key(headscale) if is_api_key_check_due(state, now) else None
    identity, metadata, node = lookup.identity or state.identity, lookup.metadata, lookup.node
    if isinstance(node, Registered):
        records = _read_records(state, node.node, sources, identity=identity, config=config, now=now)
        return Observation(
            interface, node, lookup.identity, metadata, records=records, version=version, api_key=api_key
        )
    key = None
    if node.loss is not None and identity is not None:
        heal = count_loss(state.heal, node.loss, is_superseded=node.successor is not None, now=now)
        if is_key_check_due(heal, state, now):
            metadata, key = _check_key(sources, identity.user)
    return Observation(interface, node, lookup.identity, metadata, key, version=version, api_key=api_key)


def _look_up(state: State, sources: Sources, *, config: WatchConfig, clock: Callable[[], Moment]) -> _Lookup:
    """Find this pod's node: by its id if it is known, because a list is expensive, else in the list of all nodes.

    Raises:
        ApiError: Headscale could not be read.
    """
    headscale = sources.headscale
    node, is_gone = _read_known(headscale, state.node) if state.node and state.identity else (None, False)
    if node is not None and _is_still_ours(node, state, clock()):
        return _Lookup(Registered(node, from_list=False))
    try:
        identity = NodeIdentity(config.hostname, choose_user(headscale.users(), config.user), config.tags)
        metadata = _read_metadata(sources.key_file, is_needed=state.interface is None)
    except (UserError, KeyFileError) as error:
        return _Lookup(Unregistered(str(error), error=error))
    nodes = headscale.nodes()
    now = clock()
    hints = Hints(state.interface, metadata, waited=interface_wait_is_over(state, config, now))
    found = choose_node(nodes, identity=identity, hints=hints, now=now.utc)
    if isinstance(found, Node) and state.node is not None and not hints.distinctive:
        found = without_successor(found, known=state.node)
    if isinstance(found, Node):
        return _Lookup(Registered(found, from_list=True), identity, metadata)
    own = state.node or hints.kept
    if state.node is None and own is not None and not any(own.is_same(node) for node in nodes):
        # Only an answer about this one node proves that it is gone.
        _, is_gone = _read_known(headscale, own)
    loss = why_missing(nodes, identity=identity, hints=hints, now=now.utc, own=own, not_found=is_gone)
    successor = None
    if loss is not None and loss.node_id is not None and loss.kind in (Missing.GONE, Missing.EXPIRED):
        # A node that registered with this pod's own key is this pod's: its address has yet to appear here.
        later = successors(nodes, node_id=loss.node_id, identity=identity, now=now.utc)
        successor = next((node for node in reversed(later) if not hints.metadata_names(node)), None)
    return _Lookup(Unregistered(found.reason, loss, successor), identity, metadata)


def _read_known(headscale: HeadscaleReader, known: KnownNode) -> tuple[Node | None, bool]:
    """Read a node by its id.

    Returns:
        The node, or None if it is not the known one; and whether Headscale's answer proves that the known node is
        gone. A restored database gives its id to another machine.
    """
    try:
        node = headscale.node(known.id)
    except NotFoundError:
        return None, True
    return (node, False) if known.is_same(node) else (None, True)


def _is_still_ours(node: Node, state: State, now: Moment) -> bool:
    has_moved = bool(state.interface) and not set(node.addresses) & set(state.interface or ())
    is_owned = state.identity is not None and state.identity.owns_node(node)
    return is_owned and not has_moved and not node.expired(now.utc)


def _read_metadata(key_file: KeyFileReader, *, is_needed: bool) -> KeyMetadata | None:
    try:
        return key_file.read_metadata()
    except KeyFileError:
        # An interface alone identifies our node.
        if is_needed:
            raise
        return None


def _check_key(sources: Sources, user: User) -> tuple[KeyMetadata | None, KeyCheck | Failed]:
    """Compare the key in the file with Headscale's list."""
    try:
        metadata = sources.key_file.read_metadata()
        if metadata is None or metadata.pre_auth_key_id is None:
            return metadata, KeyCheck()
        keys = sources.headscale.pre_auth_keys(user)
        key = next((key for key in keys if metadata.names_key(key)), None)
        return metadata, KeyCheck(key, is_in_file=sources.key_file.holds(metadata))
    except KeyFileError as error:
        return None, KeyCheck(error=error)
    except ApiError as error:
        return None, Failed(error)


def _read_records(
    state: State, node: Node, sources: Sources, *, identity: NodeIdentity | None, config: WatchConfig, now: Moment
) -> RecordsRead | Failed | None:
    """Read everything at our name, and the nodes of later pods if a record may be theirs."""
    specs = desired_records(node, state.interface, config)
    if not specs or not records_are_due(state, node, specs, now):
        return None
    name = config.records.name
    try:
        records = tuple(sources.cloudflare.records(name))
        apex = None
        if any(record.type == "NS" for record in records):
            # Without the permission to read the zone its name is unknown, and the record is treated as foreign.
            with suppress(AuthError):
                apex = sources.cloudflare.zone_name()
        later: Sequence[Node] = ()
        if identity is not None and needs_successor_check(records, identity=config.records, node=node):
            later = _read_successors(sources.headscale, node, identity, now)
        return RecordsRead(records, apex, tuple(later))
    except ApiError as error:
        return Failed(error)


def _read_successors(headscale: HeadscaleReader, node: Node, identity: NodeIdentity, now: Moment) -> list[Node]:
    nodes = headscale.nodes()
    if all(listed.id != node.id for listed in nodes):
        # The list is incomplete: the absence of a successor proves nothing.
        raise TransientError(f"Headscale's list lacks node {node.id}, which it has just returned.", upstream=HEADSCALE)
    return successors(nodes, node_id=node.id, identity=identity, now=now.utc)


def _read_api_key(headscale: HeadscaleReader) -> ApiKeyRead | Failed:
    try:
        return ApiKeyRead(headscale.api_key_expires_at())
    except ApiError as error:
        return Failed(error)
