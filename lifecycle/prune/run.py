"""One pass of `prune`: read, plan, and on --yes look again some time later before anything is removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from threading import Event

import structlog

from lifecycle import apply
from lifecycle.domain.changes import DeleteNode, DeleteRecord
from lifecycle.domain.errors import LifecycleError, PruneLimitError, StoppedError
from lifecycle.domain.model import Node, Record, User
from lifecycle.domain.ownership import NodeIdentity, choose_user, is_marked
from lifecycle.prune.plan import PruneWorkload, confirmed, plan_gone, plan_named
from lifecycle.settings.models import PruneSettings

log = structlog.get_logger()

# Between the two looks. After a restart of Headscale everybody is offline until their clients come back, and when a
# node was last seen is no heartbeat: for one that was connected all the time it may be as long ago as its start.
OBSERVATION_S = 900.0


@dataclass(frozen=True, slots=True)
class View:
    """What was read of both services.

    Attributes:
        records: those of the zone that carry our mark.
        nodes: every node of the tailnet.
    """

    user: User
    nodes: tuple[Node, ...]
    records: tuple[Record, ...]


class Prune:
    """The removal of services that are gone for good.

    Args:
        name: one service, taken down at once; None = all that have been gone for long.
        now: gives aware UTC.
        stop: once set, nothing further is begun.
        renew_budget: called after the wait between the looks, which is longer than anybody's patience.
    """

    def __init__(
        self,
        settings: PruneSettings,
        *,
        writers: apply.Writers,
        name: str | None,
        now: Callable[[], datetime],
        stop: Event,
        renew_budget: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._writers = writers
        self._name = name
        self._now = now
        self._stop = stop
        self._renew_budget = renew_budget

    def run(self) -> None:
        """Remove what is planned, after a second look that agrees with the first.

        Raises:
            PruneLimitError: there is more to remove than PRUNE_MAX; nothing was.
            LifecycleError: a service could not be read, or a deletion not be confirmed.
        """
        view = self.read()
        services = self.checked(self.plan(view))
        if services and self._name is None:
            log.info("prune.observing", services=[service.name for service in services], wait_s=OBSERVATION_S)
            if self._stop.wait(OBSERVATION_S):
                raise StoppedError("asked to stop before anything was removed")
            self._renew_budget()
            view = self.read()
            services = confirmed(services, self.plan(view))
        for service in services:
            self._remove(service, view.user)
        log.info("pass.finished", services=[service.name for service in services])

    def _remove(self, workload: PruneWorkload, user: User) -> None:
        reason = workload.reason
        for node in workload.nodes:
            identity = NodeIdentity(node.hostname, user, self._settings.authkey_tags)

            def is_still_ours(now: Node, identity: NodeIdentity = identity) -> bool:
                # A node that came back since it was planned for stays, unless its workload was named.
                return identity.owns_node(now) and (self._name is not None or not now.online)

            apply.delete_nodes([DeleteNode(node, reason)], self._writers.headscale, is_still_ours=is_still_ours)
        apply.change_records([DeleteRecord(record, reason) for record in workload.records], self._writers.cloudflare)

    def read(self) -> View:
        """Read both services.

        Raises:
            LifecycleError: one of them could not be read, or it cannot be told which user is ours.
        """
        mark = self._settings.mark
        user = choose_user(self._writers.headscale.users(), self._settings.headscale_user)
        nodes = tuple(self._writers.headscale.nodes())
        records = tuple(
            record for record in self._writers.cloudflare.records_commented(mark) if is_marked(record, mark)
        )
        return View(user, nodes, records)

    def plan(self, view: View) -> list[PruneWorkload]:
        """Decide what is to be removed.

        Raises:
            LifecycleError: the service that was named has no record of ours.
        """
        settings = self._settings
        if self._name is None:
            return plan_gone(
                view.records,
                view.nodes,
                domain=settings.domain_name,
                user=view.user,
                tags=settings.authkey_tags,
                now=self._now(),
                after=settings.prune_after,
            )
        services = plan_named(
            view.records,
            view.nodes,
            name=self._name,
            domain=settings.domain_name,
            user=view.user,
            tags=settings.authkey_tags,
        )
        if not services:
            raise LifecycleError(
                f'no record called {self._name} carries the mark "{settings.mark}"; is DNS_OWNER that of the service? '
                "Nothing was removed"
            )
        return services

    def checked(self, services: list[PruneWorkload]) -> list[PruneWorkload]:
        """The same services, unless they are suspiciously many.

        Raises:
            PruneLimitError: more than PRUNE_MAX.
        """
        most = self._settings.prune_max
        if len(services) > most:
            nodes = sum(len(service.nodes) for service in services)
            records = sum(len(service.records) for service in services)
            raise PruneLimitError(
                f"{len(services)} services ({nodes} nodes, {records} records) would be removed, and PRUNE_MAX is "
                f"{most}; nothing was. Look at the plan without --yes, and set PRUNE_MAX if it is right"
            )
        return services
