"""Decide which workloads prune removes, starting from the records with our mark; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from lifecycle.domain.errors import LifecycleError, PruneLimitError
from lifecycle.domain.model import Node, Record, User
from lifecycle.domain.ownership import NodeIdentity


@dataclass(frozen=True, slots=True)
class PruneConfig:
    """The settings that the plan depends on.

    Attributes:
        name: the only workload to remove, whatever its state; None = every workload that has been gone for long.
        domain: is appended to a hostname without a dot.
        mark: the comment of our records.
        tags: tags of our pre-auth keys.
        after: a node counts as gone if it has been offline for longer than this.
        limit: the largest number of workloads that one run may remove.
    """

    name: str | None
    domain: str
    mark: str
    tags: frozenset[str]
    after: timedelta
    limit: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What was read from the upstreams.

    Attributes:
        user: the owner of our nodes.
        nodes: every node of the tailnet.
        records: the zone's records with our mark.
    """

    user: User
    nodes: tuple[Node, ...]
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class PruneWorkload:
    """Remove what one workload left behind: its nodes, then its records.

    Attributes:
        name: the full name of its records.
        records: all records of this name with our mark; at least one. They are removed last, so that the next run
            finds a workload again whose removal was interrupted.
        nodes: our nodes of this name.
    """

    name: str
    records: tuple[Record, ...]
    nodes: tuple[Node, ...]
    reason: str

    def is_same(self, other: PruneWorkload) -> bool:
        """Return True if both are the same records of the same machines.

        Headscale assigns a node's id again after its database was restored.
        """
        return (
            self.name == other.name
            and set(self.records) == set(other.records)
            and {(node.id, node.machine_key) for node in self.nodes}
            == {(node.id, node.machine_key) for node in other.nodes}
        )


def plan_prune(seen: Observation, *, config: PruneConfig, now: datetime) -> list[PruneWorkload]:
    """Find the workloads to remove, in order of names.

    Args:
        seen: what was read, in any order.
        config: the settings.
        now: aware UTC, by Headscale's clock.

    Raises:
        LifecycleError: the workload that was named has no record of ours.
    """
    if config.name is None:
        return _plan_gone(seen, config=config, now=now)
    workload = _plan_named(seen, config.name, config=config)
    if workload is None:
        raise LifecycleError(
            f'no record named {config.name} has the comment "{config.mark}". Check that DNS_OWNER is that of the '
            "workload. Nothing was removed"
        )
    return [workload]


def check_limit(workloads: Sequence[PruneWorkload], *, config: PruneConfig) -> None:
    """Check that the plan is not suspiciously large.

    Raises:
        PruneLimitError: it contains more workloads than PRUNE_MAX.
    """
    if len(workloads) <= config.limit:
        return
    nodes = sum(len(workload.nodes) for workload in workloads)
    records = sum(len(workload.records) for workload in workloads)
    raise PruneLimitError(
        f"{len(workloads)} workloads ({nodes} nodes, {records} records) would be removed, but PRUNE_MAX is "
        f"{config.limit}. Nothing was removed. Check the plan without --yes, and raise PRUNE_MAX if it is right"
    )


def find_again(workload: PruneWorkload, planned: Iterable[PruneWorkload]) -> PruneWorkload | None:
    """Return the workload as a later plan has it; None if the plan does not have it, or it changed."""
    return next((later for later in planned if later.is_same(workload)), None)


def _plan_gone(seen: Observation, *, config: PruneConfig, now: datetime) -> list[PruneWorkload]:
    """Find the workloads whose node is gone or has been offline for long.

    If no node is online the result is empty: after a restart of Headscale every node is offline until it reconnects.
    """
    if not any(node.online for node in seen.nodes):
        return []
    found = []
    for name, records in _by_name(seen.records):
        candidates = [node for node in seen.nodes if _may_have_name(node, name)]
        # The workload stays if a node of its name is not ours, or may come back at any moment.
        if all(_owns(node, seen.user, config) and _is_long_offline(node, config, now) for node in candidates):
            nodes = tuple(node for node in candidates if _has_name(node, name, config.domain))
            reason = f"its node has been offline for more than {config.after}" if candidates else "its node is gone"
            found.append(PruneWorkload(name, records, nodes, reason))
    return found


def _plan_named(seen: Observation, wanted: str, *, config: PruneConfig) -> PruneWorkload | None:
    """Find one workload by its full name, or by its hostname without the domain; None if it has no record of ours."""
    full_name = wanted.lower() if "." in wanted else f"{wanted.lower()}.{config.domain}"
    records = dict(_by_name(seen.records)).get(full_name)
    if records is None:
        return None
    nodes = tuple(
        node for node in seen.nodes if _has_name(node, full_name, config.domain) and _owns(node, seen.user, config)
    )
    return PruneWorkload(full_name, records, nodes, reason="it was named")


def _by_name(records: Iterable[Record]) -> list[tuple[str, tuple[Record, ...]]]:
    names: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: (record.name, record.id)):
        names.setdefault(record.name, []).append(record)
    return [(name, tuple(ours)) for name, ours in names.items()]


def _has_name(node: Node, name: str, domain: str) -> bool:
    hostname = node.hostname.casefold()
    return name == (hostname if "." in hostname else f"{hostname}.{domain}")


def _may_have_name(node: Node, name: str) -> bool:
    """Return True if the record can belong to the node, whatever domain its pod appends to a hostname without a dot."""
    hostname = node.hostname.casefold()
    return name == hostname or ("." not in hostname and name.startswith(f"{hostname}."))


def _owns(node: Node, user: User, config: PruneConfig) -> bool:
    return NodeIdentity(node.hostname, user, config.tags).owns_node(node)


def _is_long_offline(node: Node, config: PruneConfig, now: datetime) -> bool:
    return not node.online and node.last_seen is not None and now - node.last_seen > config.after
