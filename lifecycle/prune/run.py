"""Run prune: plan the removals, wait, and remove each workload that a new plan still contains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from threading import Event

import structlog

from lifecycle import apply
from lifecycle.domain.changes import DeleteNode, DeleteRecord
from lifecycle.domain.errors import ConflictError, StoppedError
from lifecycle.domain.model import Node, User
from lifecycle.domain.ownership import NodeOwnership
from lifecycle.prune.observe import observe, prune_config
from lifecycle.prune.plan import PruneConfig, PruneWorkload, check_limit, plan_prune
from lifecycle.settings.models import PruneSettings

log = structlog.get_logger()

CONFIRMATION_DELAY_S = 900.0
"""The time between the plan and its confirmation.

After a restart of Headscale, every node is offline until its client reconnects. Then `last_seen` of a node that was
always connected can be as old as its registration. So one observation does not show that a node is gone.
"""


@dataclass(slots=True)
class Prune:
    """One run of prune, which removes the nodes and records of workloads that no longer exist.

    Attributes:
        name: the only workload to remove, without waiting; None = every workload that has been offline for longer than
            PRUNE_AFTER.
        now: returns the current time in UTC, with its time zone.
        stop: is set by SIGTERM and SIGINT. No further step starts after that.
        renew_budget: starts a new retry budget. It is called after the wait, which is longer than one budget.
    """

    settings: PruneSettings
    _: KW_ONLY
    writers: apply.Writers
    name: str | None
    now: Callable[[], datetime]
    stop: Event
    renew_budget: Callable[[], None]

    @property
    def _config(self) -> PruneConfig:
        return prune_config(self.settings, name=self.name)

    def run(self) -> None:
        """Remove the planned workloads. Unless `name` is set, wait first, and confirm each workload by a new plan.

        Raises:
            PruneLimitError: the plan contains more workloads than PRUNE_MAX; nothing was removed.
            ConflictError: the workload `name` changed while it was removed.
            LifecycleError: an upstream could not be read, or a deletion could not be confirmed.
        """
        user, workloads = self._plan()
        check_limit(workloads, config=self._config)
        names = [workload.name for workload in workloads]
        if self.name is not None:
            for workload in workloads:
                self._remove(workload, user)
        elif workloads:
            log.info("prune.waiting", workloads=names, wait_s=CONFIRMATION_DELAY_S)
            if self.stop.wait(CONFIRMATION_DELAY_S):
                raise StoppedError("stopped on request before anything was removed")
            self.renew_budget()
            names = [workload.name for workload in workloads if self._remove_if_confirmed(workload)]
        log.info("pass.finished", workloads=names)

    def _remove_if_confirmed(self, workload: PruneWorkload) -> bool:
        """Remove a workload if a new plan contains it unchanged; return True if it was removed.

        The plan is made again for each workload, because the removal of the previous one can take minutes of retries.
        """
        user, planned = self._plan()
        confirmed = next((later for later in planned if later.is_same(workload)), None)
        if confirmed is None:
            log.info("workload.skipped", workload=workload.name, reason="it has changed since it was planned")
            return False
        try:
            self._remove(confirmed, user)
        except ConflictError as error:
            log.warning("workload.skipped", workload=workload.name, reason=str(error))
            return False
        return True

    def _remove(self, workload: PruneWorkload, user: User) -> None:
        for node in workload.nodes:
            node_ownership = NodeOwnership(node.hostname, user, self.settings.authkey_tags)

            def is_still_ours(reread: Node, node_ownership: NodeOwnership = node_ownership) -> bool:
                # A node that is online again stays, unless `name` is set.
                return node_ownership.is_owned(reread) and (self.name is not None or not reread.online)

            change = DeleteNode(node, workload.reason)
            apply.delete_nodes([change], self.writers.headscale, is_still_ours=is_still_ours)
        records = [DeleteRecord(record, workload.reason) for record in workload.records]
        apply.change_records(records, self.writers.cloudflare)

    def _plan(self) -> tuple[User, list[PruneWorkload]]:
        """Read Headscale and Cloudflare. Return the owner of our nodes, and the workloads to remove."""
        headscale = self.writers.headscale
        observation = observe(self.settings, headscale=headscale, cloudflare=self.writers.cloudflare)
        return observation.user, plan_prune(observation, config=self._config, now=headscale.server_time(self.now()))
