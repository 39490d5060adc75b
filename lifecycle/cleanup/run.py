"""Run cleanup: observe, plan, and apply the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from threading import Event
from time import monotonic

import structlog

from lifecycle import apply
from lifecycle.cleanup.observe import ReadState, cleanup_config, observe
from lifecycle.cleanup.plan import CleanupConfig, Observation, Plan, plan_cleanup, plan_records
from lifecycle.domain.errors import ApiError, LifecycleError, StoppedError
from lifecycle.domain.events import warning
from lifecycle.domain.expiry import node_warning
from lifecycle.domain.model import Node
from lifecycle.domain.releases import untested_warning
from lifecycle.runtime.logs import log_event
from lifecycle.settings.models import CleanupSettings

log = structlog.get_logger()


@dataclass(slots=True)
class Cleanup:
    """The cleanup of one workload.

    Attributes:
        now: returns the current time in UTC, with its time zone.
        stop: set by SIGTERM and SIGINT. If it is set, `run` does not start to delete nodes or to create a key.
        read_state: reads tailscale's state Secret; None unless NODE_POLICY=keep.
    """

    settings: CleanupSettings
    _: KW_ONLY
    writers: apply.Writers
    now: Callable[[], datetime]
    stop: Event
    read_state: ReadState | None = None

    @property
    def _config(self) -> CleanupConfig:
        return cleanup_config(self.settings)

    def run(self) -> None:
        """Delete what earlier pods left behind, and write a pre-auth key.

        Raises:
            LifecycleError: no pre-auth key was written; the message gives the reason.
        """
        started = monotonic()
        headscale, key_file = self.writers.headscale, self.writers.key_file
        # If the key cannot be written, nothing may be deleted.
        apply.check_key_file(key_file)
        observation = observe(self.settings, self.writers, read_state=self.read_state)
        plan = plan_cleanup(observation, config=self._config, now=headscale.server_time(self.now()))
        self._log_plan(plan, observation)
        self._check_stop()
        apply.delete_nodes(plan.nodes, headscale, is_still_owned=observation.node_ownership.is_owned)
        self._check_stop()
        key = apply.write_fresh_key(plan.key, headscale=headscale, key_file=key_file, now=self.now)
        deleted = self._delete_records(plan, observation)
        expiry = node_warning(plan.kept, headscale.server_time(self.now())) if isinstance(plan.kept, Node) else None
        if expiry is not None:
            log_event(expiry)
        log.info(
            "pass.finished",
            nodes_deleted=len(plan.nodes),
            records_deleted=deleted,
            key_id=key.id,
            duration_s=round(monotonic() - started, 3),
        )

    def _delete_records(self, plan: Plan, observation: Observation) -> int:
        """Read the nodes again, delete the records that are still stale, and return how many were deleted.

        The first list of nodes can be minutes old, because of retries. A failure does not prevent the pod's start.
        """
        if not plan.records or isinstance(observation.records, LifecycleError):
            return 0
        try:
            # A list can be incomplete, so the kept node is added in any case.
            kept = [plan.kept] if isinstance(plan.kept, Node) else []
            nodes = [*self.writers.headscale.nodes(), *kept]
            changes = plan_records(
                observation.records, nodes, config=self._config, node_ownership=observation.node_ownership
            )
            apply.change_records(changes, self.writers.cloudflare)
        except ApiError as error:
            log.warning("record.delete_failed", error=str(error), reason="dns-watch will correct the records")
            return 0
        return len(changes)

    def _log_plan(self, plan: Plan, observation: Observation) -> None:
        user = observation.node_ownership.user.label
        if isinstance(observation.records, LifecycleError):
            log.warning("zone.unreadable", error=str(observation.records))
        if self.settings.headscale_user is None:
            log.warning("user.assumed", user=user, reason="it is the only user; set HEADSCALE_USER")
        untested = untested_warning(observation.headscale_version)
        if untested is not None:
            log_event(untested)
        secret = self.settings.ts_kube_secret
        match plan.kept:
            case str(reason):
                log.warning("node.not_kept", secret=secret, reason=reason, advice="the pod will get another address")
            case Node() as node:
                log.info("node.kept", node_id=node.id, hostname=node.hostname, reason=f"Secret {secret} names it")
        for node in plan.foreign:
            foreign = warning(
                "node.foreign",
                node_id=node.id,
                hostname=node.hostname,
                user=node.user.label if node.user else None,
                tags=sorted(node.tags),
                registered_by=str(node.registered_by),
                advice=(
                    f"the node stays, because it does not belong to user {user} or was not "
                    "registered with a pre-auth key. If it is a leftover of this workload, run "
                    f"`headscale nodes delete --identifier {node.id}`"
                ),
            )
            log_event(foreign)
        log.info(
            "plan.made",
            headscale=observation.headscale_version,
            nodes=len(observation.nodes),
            deletions=len(plan.nodes),
        )

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise StoppedError("stopped on request before the work was done; nothing needs to be undone")
