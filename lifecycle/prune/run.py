"""Run prune: plan the deletions, wait, plan again, and delete what both plans contain."""

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
from lifecycle.prune.plan import Leftovers, PruneConfig, check_limit, plan_prune, skip_reason
from lifecycle.settings.models import PruneSettings

log = structlog.get_logger()

CONFIRMATION_DELAY_S = 900.0
"""The time between the plan and its confirmation, in which clients can reconnect.

After a restart of Headscale, every node is offline until its client reconnects, and `last_seen` can be as old as the
node's registration, even if the client was always connected. So one observation does not show that a node is unused.
"""


@dataclass(slots=True)
class Prune:
    """One run of prune, which deletes the nodes and records of workloads that no longer run.

    Attributes:
        name: the hostname of the only workload whose nodes and records are deleted, even if it runs; None = all
            workloads that no longer run.
        now: returns the current time in UTC, with its time zone.
        stop: is set by SIGTERM and SIGINT. If it is set during the wait, nothing is deleted.
        renew_budget: allows the full time and number of retries again, because the wait uses up the time.
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
        """Make the planned deletions. Unless `name` is set, wait first, and confirm each workload by a new plan.

        Raises:
            PruneLimitError: the plan contains more workloads than PRUNE_MAX; nothing was deleted.
            ConflictError: the workload `name` changed while it was deleted.
            LifecycleError: an upstream could not be read, or a deletion could not be confirmed.
        """
        user, plan = self._plan()
        check_limit(plan, config=self._config)
        names = [leftovers.name for leftovers in plan]
        if self.name is not None:
            for leftovers in plan:
                self._delete(leftovers, user)
        elif plan:
            log.info("prune.waiting", workloads=names, wait_s=CONFIRMATION_DELAY_S)
            if self.stop.wait(CONFIRMATION_DELAY_S):
                raise StoppedError("stopped on request before anything was deleted")
            self.renew_budget()
            names = [leftovers.name for leftovers in plan if self._delete_if_confirmed(leftovers)]
        log.info("pass.finished", workloads=names)

    def _delete_if_confirmed(self, planned: Leftovers) -> bool:
        """Delete the leftovers of a workload if a new plan contains the same; return True if they were deleted.

        The plan is made again for each workload, because the deletions for the previous one can take minutes.
        """
        user, plan = self._plan()
        confirmed = next((leftovers for leftovers in plan if leftovers.deletions == planned.deletions), None)
        if confirmed is None:
            log.info("workload.skipped", workload=planned.name, reason="it has changed since it was planned")
            return False
        try:
            self._delete(confirmed, user)
        except ConflictError as error:
            log.warning("workload.skipped", workload=planned.name, reason=str(error))
            return False
        return True

    def _delete(self, leftovers: Leftovers, user: User) -> None:
        for node in leftovers.nodes:
            ownership = NodeOwnership(node.hostname, user, self.settings.authkey_tags)

            def may_delete(reread: Node, ownership: NodeOwnership = ownership) -> bool:
                # A node that is online again stays, unless `name` is set.
                return ownership.is_owned(reread) and (self.name is not None or not reread.online)

            change = DeleteNode(node, leftovers.reason)
            apply.delete_nodes([change], self.writers.headscale, is_still_owned=may_delete)
        records = [DeleteRecord(record, leftovers.reason) for record in leftovers.records]
        apply.change_records(records, self.writers.cloudflare)

    def _plan(self) -> tuple[User, list[Leftovers]]:
        """Read Headscale and Cloudflare. Return the user that owns the nodes, and what to delete."""
        observation = observe(self.settings, self.writers)
        if reason := skip_reason(observation, self._config):
            log.warning("prune.skipped", reason=reason)
        now = self.writers.headscale.server_time(self.now())
        return observation.user, plan_prune(observation, config=self._config, now=now)
