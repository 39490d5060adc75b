"""Pure functions that decide which nodes and records prune deletes.

Prune finds a workload by the comments of its records. It does not change the workload's objects in Kubernetes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from lifecycle.domain.errors import LifecycleError, PruneLimitError
from lifecycle.domain.model import Node, Record, User
from lifecycle.domain.ownership import NodeOwnership, could_have_main_name, main_name_of, record_name


@dataclass(frozen=True, slots=True)
class PruneConfig:
    """The settings that the plan depends on.

    Attributes:
        name: the hostname of the only workload to delete, even if it runs; None = every workload that no longer runs.
        domain: DOMAIN_NAME, which is appended to a hostname without a dot.
        mark: the start of the comments that identify the records of this DNS_OWNER.
        tags: AUTHKEY_TAGS.
        prune_after: PRUNE_AFTER. A workload whose nodes have all been offline for longer than this no longer runs.
        prune_max: PRUNE_MAX, the largest number of workloads that one run may delete.
    """

    name: str | None
    domain: str
    mark: str
    tags: frozenset[str]
    prune_after: timedelta
    prune_max: int


@dataclass(frozen=True, slots=True)
class Observation:
    """The owner of the workloads' nodes, all nodes, and the records whose comments start with the mark."""

    user: User
    nodes: tuple[Node, ...]
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Leftovers:
    """The nodes and records of one workload, all of which prune deletes.

    The records are deleted last. If a deletion fails, the next run finds the workload again by its records.

    Attributes:
        name: the workload's full hostname.
        records: the records at this name and at the names in DNS_ALIASES and DNS_SHARED_NAMES; at least one.
    """

    name: str
    records: tuple[Record, ...]
    nodes: tuple[Node, ...]
    reason: str

    @property
    def deletions(self) -> tuple[str, frozenset[Record], frozenset[tuple[str, str]]]:
        """What prune deletes, to compare two plans. An id does not suffice: a restored database can assign it again."""
        return self.name, frozenset(self.records), frozenset((node.id, node.machine_key) for node in self.nodes)


def skip_reason(observation: Observation, config: PruneConfig) -> str | None:
    """Return why no workload can be planned; None if it is known which workloads still run, or one is selected by name.

    If every node is offline, Headscale may have restarted, and the clients have not reconnected yet.
    """
    if config.name is not None or any(node.online for node in observation.nodes):
        return None
    return (
        "no node in Headscale is online, so it is not known which workloads still run. Run prune again when the nodes "
        "have reconnected"
    )


def plan_prune(observation: Observation, *, config: PruneConfig, now: datetime) -> list[Leftovers]:
    """Find the workloads whose nodes and records are deleted, in order of names.

    Args:
        now: the time by Headscale's clock.

    Raises:
        LifecycleError: no record of the workload `config.name` has the mark.
    """
    records_by_name: dict[str, list[Record]] = {}
    for record in sorted(observation.records, key=lambda record: (record.name, record.id)):
        main_name = main_name_of(record, config.mark)
        if main_name is not None:
            records_by_name.setdefault(main_name, []).append(record)
    user = observation.user
    if config.name is not None:
        full_name = record_name(config.name.removesuffix("."), config.domain)
        if full_name not in records_by_name:
            raise LifecycleError(
                f'no record of {config.name} has the comment "{config.mark}". Set DNS_OWNER to the value that the '
                "workload has. Nothing was deleted"
            )
        named = [node for node in observation.nodes if record_name(node.hostname, config.domain) == full_name]
        nodes = tuple(node for node in named if _is_owned(node, user, config))
        return [Leftovers(full_name, tuple(records_by_name[full_name]), nodes, "the option --name selects it")]
    if skip_reason(observation, config):
        return []
    plan = []
    for name, records in sorted(records_by_name.items()):
        candidates = [node for node in observation.nodes if could_have_main_name(node, name)]
        if any(_may_be_in_use(node, user, config, now) for node in candidates):
            continue
        nodes = tuple(node for node in candidates if record_name(node.hostname, config.domain) == name)
        reason = f"its node has been offline for more than {config.prune_after}" if candidates else "it has no node"
        plan.append(Leftovers(name, tuple(records), nodes, reason))
    return plan


def check_limit(plan: Sequence[Leftovers], *, config: PruneConfig) -> None:
    """Raise PruneLimitError if the plan contains more workloads than PRUNE_MAX."""
    if len(plan) <= config.prune_max:
        return
    nodes = sum(len(leftovers.nodes) for leftovers in plan)
    records = sum(len(leftovers.records) for leftovers in plan)
    raise PruneLimitError(
        f"{len(plan)} workloads ({nodes} nodes, {records} records) would be deleted, but PRUNE_MAX is "
        f"{config.prune_max}. Nothing was deleted. Run prune without --yes to list these workloads. If all of them may "
        "be deleted, raise PRUNE_MAX"
    )


def _may_be_in_use(node: Node, user: User, config: PruneConfig, now: datetime) -> bool:
    is_long_offline = not node.online and node.last_seen is not None and now - node.last_seen > config.prune_after
    return not is_long_offline or not _is_owned(node, user, config)


def _is_owned(node: Node, user: User, config: PruneConfig) -> bool:
    return NodeOwnership(node.hostname, user, config.tags).is_owned(node)
