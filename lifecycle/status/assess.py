"""Pure functions that derive the state of every workload of an owner (DNS_OWNER) from its nodes and records.

Nodes and records are ours if they belong to this owner.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from lifecycle.domain.expiry import api_key_warning, node_warning
from lifecycle.domain.foreign import advice_on_foreign_record, blocks
from lifecycle.domain.model import Node, Record, User, describe, record_type
from lifecycle.domain.ownership import (
    IpNetwork,
    NameKind,
    NodeOwnership,
    RecordOwnership,
    is_in_domain,
    main_name_of,
    record_name,
    workload_mark,
)
from lifecycle.domain.text import timestamp


class State(StrEnum):
    """The state of one name of a workload, or of a superseded node."""

    IN_SYNC = "in sync"
    EXPIRING = "node expiring"
    OFFLINE = "offline"
    DRIFTED = "drifted"
    NO_RECORD = "no record"
    FOREIGN_RECORD = "foreign record"
    FOREIGN_NODE = "foreign node"
    EXPIRED = "node expired"
    ORPHANED = "orphaned"
    SUPERSEDED = "superseded"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class StatusConfig:
    """The settings that the states depend on.

    Attributes:
        domain: the domain (DOMAIN_NAME), which is appended to a hostname without a dot.
        mark: the comment of our records at main names. At further names, the comment also contains the main name.
        tags: the tags of the pre-auth keys (AUTHKEY_TAGS).
        ipv6: True if this program manages AAAA records.
    """

    domain: str
    mark: str
    tags: frozenset[str]
    vpn_prefixes: tuple[IpNetwork, ...]
    ipv6: bool


@dataclass(frozen=True, slots=True)
class Observation:
    """What was read. A value that could not be read is None or, in the case of `users`, empty.

    Attributes:
        users: all users of Headscale.
        user: the user that owns our nodes.
        nodes: all nodes in Headscale.
        records: all records of the zone.
        apex: the zone's own name; None also if the token may not read the zone.
        api_key_expires_at: None also if the API key never expires.
        problems: why values could not be read, except `api_key_expires_at`.
    """

    users: Sequence[User] = ()
    user: User | None = None
    nodes: Sequence[Node] | None = None
    records: Sequence[Record] | None = None
    apex: str | None = None
    api_key_expires_at: datetime | None = None
    problems: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report, about a name of a workload, or about an older node with the same hostname.

    Attributes:
        name: the full name of the records. If several workloads share a name, each of them has a row with this name.
        records: our records at this name.
        node: our node that has the name; None if there is none, or if it is unknown.
        in_the_way: the foreign nodes or records with this name, as text; "" if there are none.
        advice: what the operator has to do; "" = nothing.
    """

    name: str
    state: State
    records: tuple[Record, ...] = ()
    node: Node | None = None
    in_the_way: str = ""
    advice: str = ""


_ADVICE = {
    State.OFFLINE: "The pod does not run, or its VPN is disconnected. Check the pod and the log of its container "
    "tailscale. After a restart of Headscale, nodes come back within minutes. If the workload was removed, "
    "run `lifecycle prune --name NAME`.",
    State.DRIFTED: "The record does not have the address of the node. dns-watch corrects it within VERIFY_INTERVAL. "
    "If the state stays, read the log of dns-watch.",
    State.NO_RECORD: "The node is online and has no record. dns-watch creates it within seconds. If the state "
    "stays, read the log of dns-watch.",
    State.EXPIRED: "The node has to log in again. Delete the pod (with NODE_POLICY=keep, delete the node in Headscale "
    "first). If the workload was removed, run `lifecycle prune --name NAME`.",
    State.ORPHANED: "No node has the name. If the workload was removed, run `lifecycle prune --name NAME`. If it "
    "runs, delete its pod, or set SELF_HEAL=true.",
    State.FOREIGN_NODE: "A node with the name has another user, or registered without a pre-auth key. If it is a "
    "leftover, delete it in Headscale. If it belongs to the workload, check HEADSCALE_USER and AUTHKEY_TAGS.",
    State.SUPERSEDED: "A later pod of the workload owns the name. If this node stays online for a quarter of an hour, "
    "two pods run: stop the older one.",
}
_UNREADABLE = "Headscale or Cloudflare could not be read. Solve the problem below, and run the command again."
_NO_NODES = (
    "Headscale lists no node at all. This can happen for a moment after its start, so run the command again. If the "
    "state stays, Headscale uses another database, or the nodes were deleted."
)


@dataclass(frozen=True, slots=True)
class _WorkloadName:
    """One name of a workload, the records at this name, and the nodes with the workload's hostname, ordered by id."""

    record_ownership: RecordOwnership
    records: Sequence[Record]
    nodes: Sequence[Node]


def assess_workloads(observation: Observation, *, config: StatusConfig, now: datetime) -> tuple[list[Row], list[str]]:
    """Return one or more rows for every workload, in order of names.

    Args:
        now: the time by Headscale's clock.

    Returns:
        The rows, and the problems that concern no single workload.
    """
    problems = list(observation.problems)
    rows = [row for name in _workload_names(observation, config) for row in _rows(name, observation, config, now)]
    rows.sort(key=lambda row: row.name)
    api_key = api_key_warning(observation.api_key_expires_at, now)
    if api_key is not None:
        problems.append(
            f"The API key of Headscale expires at {timestamp(api_key.fields['expires_at'])}. {api_key.fields['advice']}"
        )
    if not rows and not problems:
        problems.append(
            f'No record has the comment "{config.mark}", and no node of the user has a name in {config.domain}. Check '
            "DNS_OWNER, HEADSCALE_USER and DOMAIN_NAME."
        )
    return rows, problems


def _workload_names(observation: Observation, config: StatusConfig) -> Iterator[_WorkloadName]:
    """Yield each name of each workload of the owner: the main name, and the further names that have records.

    A node without a record belongs to a workload of the owner if it is ours and its name is in `config.domain`.
    """
    records: dict[str, list[Record]] = defaultdict(list)
    nodes: dict[str, list[Node]] = defaultdict(list)
    by_hostname: dict[str, list[Node]] = defaultdict(list)
    # The rows must not depend on the order in which the servers list records and nodes.
    for record in sorted(observation.records or (), key=lambda record: record.id):
        records[record.name].append(record)
    for node in sorted(observation.nodes or (), key=lambda node: node.sequence):
        nodes[record_name(node.hostname, config.domain)].append(node)
        by_hostname[node.hostname.casefold()].append(node)
    for name in sorted({*records, *nodes}):
        record_ownership = RecordOwnership(name, config.mark, config.vpn_prefixes)
        records_here, nodes_here = records[name], nodes[name]
        if any(map(record_ownership.is_marked, records_here)):
            # If the workload has another DOMAIN_NAME than this command, its node is found by the hostname alone.
            yield _WorkloadName(record_ownership, records_here, nodes_here or by_hostname[name.partition(".")[0]])
        elif (
            # If a record has the mark of another owner, the node is assumed to belong to that owner's workload.
            is_in_domain(name, config.domain)
            and any(_owns(node, observation, config) for node in nodes_here)
            and all(
                main_name_of(record, config.mark)
                for record in records_here
                if record_ownership.has_another_mark(record)
            )
        ):
            yield _WorkloadName(record_ownership, records_here, nodes_here)
    for name, records_here in sorted(records.items()):
        for main_name in sorted({main_name_of(record, config.mark) or name for record in records_here} - {name}):
            nodes_here = nodes[main_name] or by_hostname[main_name.partition(".")[0]]
            yield _WorkloadName(_further_ownership(name, main_name, records_here, config), records_here, nodes_here)


def _further_ownership(
    name: str, main_name: str, records_here: Sequence[Record], config: StatusConfig
) -> RecordOwnership:
    """Return the criteria for owning a record of the workload at a further name."""
    mark = workload_mark(config.mark, main_name)
    is_alias = any(record.type == "CNAME" and record.comment == mark for record in records_here)
    kind = NameKind.ALIAS if is_alias else NameKind.SHARED
    return RecordOwnership(name, mark, config.vpn_prefixes, kind, main_name)


def _rows(name: _WorkloadName, observation: Observation, config: StatusConfig, now: datetime) -> Iterator[Row]:
    ownership = name.record_ownership
    # If this program manages no AAAA records, it leaves AAAA records without our comment alone.
    ours = (
        record
        for record in name.records
        if ownership.is_owned(record) and (config.ipv6 or record.type == "A" or ownership.is_marked(record))
    )
    records = tuple(sorted(ours, key=lambda record: (record.type, record.content, record.id)))
    owned = [node for node in name.nodes if _owns(node, observation, config)]
    valid = [node for node in owned if not node.is_expired(now)]
    # If several nodes are online, the name belongs to the latest one.
    candidates = [node for node in valid if node.online] or valid or owned
    node = candidates[-1] if candidates else None

    def row(state: State, advice: str | None = None, in_the_way: str = "") -> Row:
        advice = _ADVICE.get(state, "") if advice is None else advice
        advice = _with_prune_command(advice, records, ownership)
        return Row(ownership.name, state, records, node, in_the_way, advice)

    if observation.nodes is None or observation.records is None:
        yield row(State.UNKNOWN, _UNREADABLE)
    elif not observation.nodes:
        yield row(State.UNKNOWN, _NO_NODES)
    elif node is None and name.nodes:
        yield row(State.FOREIGN_NODE, in_the_way="; ".join(f"node {node.id} ({describe(node)})" for node in name.nodes))
    elif node is None:
        yield row(State.ORPHANED)
    elif not records and not (node.online and "." in node.hostname):
        # No advice: a node without a dot in its hostname may be another machine of the user, and the workload of an
        # offline node may have been removed.
        yield row(State.NO_RECORD, advice="")
    else:
        foreign = [
            record
            for record in name.records
            if blocks(record, record_ownership=ownership, ipv6=config.ipv6, apex=observation.apex)
        ]
        descriptions = (f"{record.type} {record.content} (comment: {record.comment or 'none'})" for record in foreign)
        yield row(*_state(node, records, foreign, name, config, now), "; ".join(descriptions))
    if node is None or ownership.kind is not NameKind.MAIN:
        return
    for older in [other for other in valid if other.sequence < node.sequence]:
        advice = _ADVICE[State.SUPERSEDED] if older.online else ""
        yield Row(ownership.name, State.SUPERSEDED, (), older, advice=advice)


def _with_prune_command(advice: str, records: Sequence[Record], ownership: RecordOwnership) -> str:
    """Adapt advice to what `prune` can do: it finds a workload by its marked records, and takes its main name."""
    if advice and ownership.kind is not NameKind.MAIN:
        command = advice.replace("--name NAME", f"--name {ownership.target}")
        return f"This is a further name of {ownership.target}. {command}"
    if any(map(ownership.is_marked, records)):
        return advice
    return advice.replace("run `lifecycle prune --name NAME`", "delete its node and records yourself")


def _state(
    node: Node,
    records: Sequence[Record],
    foreign: Sequence[Record],
    name: _WorkloadName,
    config: StatusConfig,
    now: datetime,
) -> tuple[State, str | None]:
    """Return the state of a name that belongs to one of our nodes, and its advice; None = the advice in _ADVICE."""
    expiry = node_warning(node, now)
    advice = None
    if node.is_expired(now):
        state = State.EXPIRED
    elif foreign:
        state, advice = (
            State.FOREIGN_RECORD,
            advice_on_foreign_record(foreign[0], record_ownership=name.record_ownership),
        )
    elif not records:
        state = State.NO_RECORD
    elif not node.online:
        state = State.OFFLINE
    elif not _are_in_sync(records, node, name, config):
        state = State.DRIFTED
    elif expiry is not None:
        state = State.EXPIRING
        advice = f"The node expires at {timestamp(expiry.fields['expires_at'])}. {expiry.fields['advice']}"
    else:
        state = State.IN_SYNC
    return state, advice


def _are_in_sync(records: Sequence[Record], node: Node, name: _WorkloadName, config: StatusConfig) -> bool:
    record_ownership = name.record_ownership
    if record_ownership.kind is NameKind.ALIAS:
        return all(record_ownership.is_alias(record) and not record.proxied for record in records)
    addresses = record_ownership.vpn_addresses(node.addresses)
    # Beside a record of another workload with the same address, Cloudflare accepts no second one.
    published = {record.address for record in name.records if record not in records}
    required = {record_type(address) for address in {*addresses} - published} - (set() if config.ipv6 else {"AAAA"})
    types = [record.type for record in records]
    if not required <= set(types) or len(types) > len(set(types)):
        return False
    return all(
        record.address in addresses and record_ownership.is_marked(record) and not record.proxied for record in records
    )


def _owns(node: Node, observation: Observation, config: StatusConfig) -> bool:
    return observation.user is not None and NodeOwnership(node.hostname, observation.user, config.tags).is_owned(node)
