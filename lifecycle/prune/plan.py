"""Pure functions that decide which workloads prune removes. A workload is found by the comment of its records."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from lifecycle.domain.errors import LifecycleError, PruneLimitError
from lifecycle.domain.model import Node, Record, User
from lifecycle.domain.ownership import NodeOwnership, marked_workload, may_have_name, record_name


@dataclass(frozen=True, slots=True)
class PruneConfig:
    """The settings that the plan depends on.

    Attributes:
        name: the only workload to remove, even if it is running; None = every workload that is gone.
        domain: the domain (DOMAIN_NAME), which is appended to a hostname without a dot.
        mark: the comment that identifies our records at main names. At further names, the main name is added to it.
        min_offline: a node counts as gone if it has been offline for longer than this.
        max_workloads: the largest number of workloads that one run may remove.
    """

    name: str | None
    domain: str
    mark: str
    tags: frozenset[str]
    min_offline: timedelta
    max_workloads: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What was read: the user that owns our nodes, all nodes in Headscale, and our records in the zone."""

    user: User
    nodes: tuple[Node, ...]
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class PruneWorkload:
    """What one workload left behind. Prune removes its nodes, then its records.

    A workload is found by its records, so the records are removed last. If a removal fails, the next
    run finds the workload again and removes the rest.

    Attributes:
        name: the full main name of the workload.
        records: the records at its main name and its further names; at least one.
    """

    name: str
    records: tuple[Record, ...]
    nodes: tuple[Node, ...]
    reason: str

    def is_same(self, other: PruneWorkload) -> bool:
        """Return True if both have the same name, the same records, and nodes with the same ids and machine keys.

        A node's id is not enough: Headscale can assign an id again after its database was restored from a backup.
        """
        return self._identity == other._identity

    @property
    def _identity(self) -> tuple[str, frozenset[Record], frozenset[tuple[str, str]]]:
        machines = frozenset((node.id, node.machine_key) for node in self.nodes)
        return self.name, frozenset(self.records), machines


def plan_prune(observation: Observation, *, config: PruneConfig, now: datetime) -> list[PruneWorkload]:
    """Find the workloads to remove, in order of names.

    Args:
        now: the time by Headscale's clock.

    Raises:
        LifecycleError: none of our records belongs to the workload `config.name`.
    """
    if config.name is None:
        return _plan_gone(observation, config=config, now=now)
    full_name = record_name(config.name, config.domain)
    records = dict(_by_workload(observation.records, config.mark)).get(full_name)
    if records is None:
        raise LifecycleError(
            f'no record named {config.name} has the comment "{config.mark}". Check that DNS_OWNER is that of the '
            "workload. Nothing was removed"
        )
    named = [node for node in observation.nodes if record_name(node.hostname, config.domain) == full_name]
    nodes = tuple(node for node in named if _owns(node, observation.user, config))
    return [PruneWorkload(full_name, records, nodes, reason="it was named")]


def check_limit(workloads: Sequence[PruneWorkload], *, config: PruneConfig) -> None:
    """Check that the plan does not contain more workloads than PRUNE_MAX.

    Raises:
        PruneLimitError: the plan contains more workloads.
    """
    if len(workloads) <= config.max_workloads:
        return
    nodes = sum(len(workload.nodes) for workload in workloads)
    records = sum(len(workload.records) for workload in workloads)
    raise PruneLimitError(
        f"{len(workloads)} workloads ({nodes} nodes, {records} records) would be removed, but PRUNE_MAX is "
        f"{config.max_workloads}. Nothing was removed. Check the plan without --yes, and raise PRUNE_MAX if it is right"
    )


def _plan_gone(observation: Observation, *, config: PruneConfig, now: datetime) -> list[PruneWorkload]:
    """Find the workloads whose node does not exist or has been offline for too long.

    If no node at all is online, the result is empty, because after a restart of Headscale every node is offline until
    its client reconnects.
    """
    if not any(node.online for node in observation.nodes):
        return []
    gone = []
    for name, records in _by_workload(observation.records, config.mark):
        candidates = [node for node in observation.nodes if may_have_name(node, name)]
        # The workload stays if a node with its name is not ours, or has not been offline for long enough.
        if all(_owns(node, observation.user, config) and _is_long_offline(node, config, now) for node in candidates):
            nodes = tuple(node for node in candidates if record_name(node.hostname, config.domain) == name)
            reason = (
                f"its node has been offline for more than {config.min_offline}" if candidates else "its node is gone"
            )
            gone.append(PruneWorkload(name, records, nodes, reason))
    return gone


def _by_workload(records: Iterable[Record], mark: str) -> list[tuple[str, tuple[Record, ...]]]:
    workloads: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda record: (record.name, record.id)):
        workloads.setdefault(marked_workload(record, mark) or record.name, []).append(record)
    return [(name, tuple(workloads[name])) for name in sorted(workloads)]


def _owns(node: Node, user: User, config: PruneConfig) -> bool:
    return NodeOwnership(node.hostname, user, config.tags).is_owned(node)


def _is_long_offline(node: Node, config: PruneConfig, now: datetime) -> bool:
    return not node.online and node.last_seen is not None and now - node.last_seen > config.min_offline
