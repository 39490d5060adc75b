"""Read everything that dns-watch needs for a decision. Nothing is changed.

Our names are the workload's main name and further names. The known node is this pod's node as it was last found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.headscale.errors import UPSTREAM
from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.dns_watch.healing import count_loss, is_key_check_due
from lifecycle.dns_watch.nodes import Hints, choose_node, find_loss, preferred_nodes, successors
from lifecycle.dns_watch.records import RecordPlan, desired_records, needs_preferred_nodes, plan_records_at_name
from lifecycle.dns_watch.schedule import interface_wait_is_over, records_are_due, with_interface
from lifecycle.dns_watch.state import (
    NO_METADATA,
    ApiKeyRead,
    InterfaceAddresses,
    KeyCheck,
    KnownNode,
    Moment,
    Observation,
    RecordsRead,
    State,
    Unregistered,
    WatchConfig,
)
from lifecycle.domain.errors import ApiError, AuthError, KeyFileError, NotFoundError, TransientError, UserError
from lifecycle.domain.model import IpAddress, KeyMetadata, Node, Record, RecordSpec, RegisterMethod, User
from lifecycle.domain.ownership import NodeOwnership, choose_user, workload_mark
from lifecycle.keyfile.reader import KeyFileReader
from lifecycle.readers import Readers
from lifecycle.settings.models import DnsWatchSettings


def watch_config(settings: DnsWatchSettings) -> WatchConfig:
    """Return the settings that decisions depend on."""
    return WatchConfig(
        main_name_ownership=settings.main_name_ownership,
        further_name_ownerships=settings.further_name_ownerships,
        hostname=settings.node_hostname,
        user=settings.headscale_user,
        tags=settings.authkey_tags,
        ttl_s=settings.dns_ttl,
        ipv6=settings.dns_ipv6,
        key_spec=settings.key_spec,
        key_path=str(settings.authkey_output_path),
        self_heal=settings.self_heal,
        retry_interval=settings.retry_interval,
        max_retries=settings.max_retries,
        poll_interval=settings.effective_poll_interval,
        min_poll_interval=settings.min_poll_interval,
        verify_interval=settings.verify_interval,
        expects_interface=bool(settings.tailscale_interface),
    )


def vpn_interface(addresses: Iterable[IpAddress] | None, config: WatchConfig) -> InterfaceAddresses:
    """Return the VPN addresses among all addresses of this pod's interface; None if the interface does not exist."""
    if addresses is None:
        return None
    return tuple(sorted(config.main_name_ownership.vpn_addresses(tuple(addresses)), key=str))


def observe(
    state: State, readers: Readers, interface: InterfaceAddresses, *, config: WatchConfig, clock: Callable[[], Moment]
) -> Observation:
    """Read everything that is due. If a read fails, return its error, and never an empty list.

    Args:
        state: what was remembered after the last pass. It determines what is due.
        clock: returns the current time, by Headscale's clock once Headscale has responded.
    """
    state = with_interface(state, interface, clock())
    try:
        observation = _look_up(state, readers, config=config, clock=clock)
    except ApiError as error:
        return Observation(interface, error)
    node, now = observation.node, clock()
    if isinstance(node, ApiError):
        return observation
    if state.is_registered:
        # The version and the expiry of the API key are only reported. Reading them before the node is registered would
        # delay the record.
        with suppress(ApiError):
            observation = replace(observation, version=readers.headscale.version())
        if now.monotonic_s >= state.api_key_read_due_s:
            observation = replace(observation, api_key=_read_api_key(readers.headscale))
    node_ownership = observation.node_ownership or state.node_ownership
    if node_ownership is None:
        return observation
    if isinstance(node, Node):
        records = _read_records(state, node, readers, node_ownership=node_ownership, config=config, now=now)
        return replace(observation, records=records)
    if node.loss is not None:
        state = replace(state, heal=count_loss(state.heal, node.loss, now))
        if is_key_check_due(state, now):
            return replace(observation, key_check=_check_key(readers, node_ownership.user))
    return observation


def _look_up(state: State, readers: Readers, *, config: WatchConfig, clock: Callable[[], Moment]) -> Observation:
    """Read this pod's node by its id. If that finds no valid node, search the list of all nodes, which is expensive.

    Once a day, list all nodes instead, to count them.

    Raises:
        ApiError: Headscale could not be read.
    """
    known = state.node
    if known is None or state.node_ownership is None:
        return _look_up_in_list(state, readers, config=config, clock=clock)
    headscale, started_s = readers.headscale, clock().monotonic_s
    node, fleet_size = None, None
    if started_s >= state.fleet_count_due_s:
        nodes = headscale.nodes()
        fleet_size = _fleet_size(nodes)
        node = next((node for node in nodes if known.is_same(node)), None)
    if node is None:
        node = _read_known(headscale, known)
    # With a reusable key, the tailscale container can have registered another node, which only the list shows.
    is_reusable = config.key_spec(state.node_ownership.user).reusable
    may_be_replaced = node is not None and not node.online and state.interface is None and is_reusable
    if node is None or may_be_replaced or not _is_still_valid(node, state.node_ownership, state.interface, clock()):
        return _look_up_in_list(state, readers, config=config, clock=clock, is_gone=node is None)
    node_read_s = clock().monotonic_s - started_s if fleet_size is None else None
    return Observation(state.interface, node, node_read_s=node_read_s, fleet_size=fleet_size)


def _look_up_in_list(
    state: State, readers: Readers, *, config: WatchConfig, clock: Callable[[], Moment], is_gone: bool = False
) -> Observation:
    """Find this pod's node in the list of all nodes, or the reason why it is missing.

    Args:
        is_gone: Headscale has proved that the known node is gone.

    Raises:
        ApiError: Headscale could not be read.
    """
    headscale, interface = readers.headscale, state.interface
    try:
        node_ownership = NodeOwnership(config.hostname, choose_user(headscale.users(), config.user), config.tags)
        metadata = _read_metadata(readers.key_file, is_needed=interface is None)
    except (UserError, KeyFileError) as error:
        return Observation(interface, Unregistered(str(error), error=error))
    nodes = headscale.nodes()
    now = clock()
    has_waited = interface_wait_is_over(state, config, now)
    hints = Hints(node_ownership, now.utc, interface, metadata, has_waited, known=state.node)
    choice = choose_node(nodes, hints)
    if isinstance(choice, Node):
        return Observation(interface, choice, node_ownership, metadata, fleet_size=_fleet_size(nodes))
    named = hints.metadata_node
    if state.node is None and named is not None and not any(named.is_same(node) for node in nodes):
        # The list can be incomplete, so it does not prove that the node is gone.
        is_gone = _read_known(headscale, named) is None
    loss = find_loss(nodes, hints, is_gone=is_gone, is_superseded=state.superseded_by is not None)
    if loss is not None and loss.node is not None:
        # A later node that registered with this pod's key belongs to this pod, even if the interface does not have the
        # node's address yet.
        later = successors(nodes, node_id=loss.node.id, node_ownership=node_ownership, now=now.utc)
        successor = next((node for node in reversed(later) if not hints.metadata_identifies(node)), None)
        loss = replace(loss, successor=successor)
    return Observation(interface, replace(choice, loss=loss), node_ownership, metadata)


def _read_known(headscale: HeadscaleReader, known: KnownNode) -> Node | None:
    """Read a node by its id; None if the node is gone.

    The node is gone if Headscale reports that it does not exist, or has assigned its id to another machine after a
    restore of Headscale's database.
    """
    try:
        node = headscale.node(known.id)
    except NotFoundError:
        return None
    return node if known.is_same(node) else None


def _is_still_valid(node: Node, node_ownership: NodeOwnership, interface: InterfaceAddresses, now: Moment) -> bool:
    has_other_address = bool(interface) and not set(node.addresses) & set(interface or ())
    return node_ownership.is_owned(node) and not has_other_address and not node.is_expired(now.utc)


def _read_metadata(key_file: KeyFileReader, *, is_needed: bool = True) -> KeyMetadata:
    try:
        return key_file.read_metadata() or NO_METADATA
    except KeyFileError:
        # If there is a VPN interface, the interface's address identifies the node, and the metadata is not needed.
        if is_needed:
            raise
        return NO_METADATA


def _check_key(readers: Readers, user: User) -> KeyCheck | ApiError | KeyFileError:
    """Compare the key in the key file with Headscale's list of keys."""
    try:
        metadata = _read_metadata(readers.key_file)
        if metadata.pre_auth_key_id is None:
            return KeyCheck(metadata)
        keys = readers.headscale.pre_auth_keys(user)
        key = next((key for key in keys if metadata.identifies_key(key)), None)
        return KeyCheck(metadata, key, is_in_file=readers.key_file.contains_key_of(metadata))
    except (ApiError, KeyFileError) as error:
        return error


def _read_records(
    state: State, node: Node, readers: Readers, *, node_ownership: NodeOwnership, config: WatchConfig, now: Moment
) -> RecordsRead | ApiError | None:
    """Read the records at our names if a read is due, and the preferred nodes if one may have written a record."""
    specs = desired_records(node, state.interface, config)
    if not specs or not records_are_due(state, node, specs, now):
        return None
    try:
        records = _records_at_our_names(readers.cloudflare, node, specs, config)
        apex = None
        if any(record.type == "NS" for record in records):
            # NS records at a name prevent changes there, except at the zone's own name. If the token may not read the
            # zone, this name is unknown, and its NS records prevent changes there, too.
            with suppress(AuthError):
                apex = readers.cloudflare.zone_name()
        preferred: list[Node] = []
        if needs_preferred_nodes(records, node, config):
            preferred = _read_preferred_nodes(readers.headscale, node, node_ownership, now)
        return RecordsRead(records, apex, tuple(preferred), is_repeated=specs == state.records.compared_specs)
    except ApiError as error:
        return error


def _records_at_our_names(
    cloudflare: CloudflareReader, node: Node, specs: Sequence[RecordSpec], config: WatchConfig
) -> tuple[Record, ...]:
    """Read the records at the main name, and our records at further names, whose comment is the workload's mark.

    If all records are right, one request is enough: its filters are the main name or the comment (`match=any`). If our
    records at a further name are not right, all records at this name are read, because a foreign record there, which
    has another comment, prevents changes. If the response has no record at the main name, this name is read alone,
    because a server that ignores `match=any` returns only records that meet both filters.
    """
    main = config.main_name_ownership
    comment = workload_mark(main.mark, main.name) if config.further_name_ownerships else None
    records = cloudflare.records(main.name, comment=comment)
    if config.further_name_ownerships and all(record.name != main.name for record in records):
        records = [*records, *cloudflare.records(main.name)]
    for further in config.further_name_ownerships:
        read = RecordsRead(tuple(records))
        plan = plan_records_at_name(read, node, specs, record_ownership=further, config=config)
        if plan != RecordPlan():
            others = [record for record in records if record.name != further.name]
            records = [*others, *cloudflare.records(further.name)]
    return tuple(records)


def _read_preferred_nodes(
    headscale: HeadscaleReader, node: Node, node_ownership: NodeOwnership, now: Moment
) -> list[Node]:
    nodes = headscale.nodes()
    if all(listed.id != node.id for listed in nodes):
        # The list is incomplete, so it cannot show that there is no successor.
        raise TransientError(f"Headscale's list of nodes lacks node {node.id}, which exists.", upstream=UPSTREAM)
    return preferred_nodes(nodes, node, node_ownership=node_ownership, now=now.utc)


def _read_api_key(headscale: HeadscaleReader) -> ApiKeyRead | ApiError:
    try:
        return ApiKeyRead(headscale.api_key_expires_at())
    except ApiError as error:
        return error


def _fleet_size(nodes: Iterable[Node]) -> int:
    """Return the number of nodes that registered with a pre-auth key, as pods do. Users' devices usually do not."""
    return sum(node.registered_by is RegisterMethod.AUTH_KEY for node in nodes)
