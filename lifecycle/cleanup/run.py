"""One pass of `cleanup`: read both services side by side, plan, apply in one order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Event
from time import monotonic

import structlog

from lifecycle import apply
from lifecycle.cleanup.plan import (
    NothingKept,
    choose_kept,
    foreign_nodes,
    plan_nodes,
    plan_records,
    refuse_taken_name,
)
from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.domain.changes import DeleteNode, DeleteRecord, WriteFreshKey
from lifecycle.domain.errors import ApiError, LifecycleError, StoppedError
from lifecycle.domain.expiry import api_key_warning, node_warning
from lifecycle.domain.model import KeySpec, Node, Record
from lifecycle.domain.ownership import NodeIdentity, RecordIdentity, choose_user
from lifecycle.runtime.background import in_background
from lifecycle.runtime.logs import log_event
from lifecycle.settings.models import CleanupSettings

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class View:
    """What was read of both services.

    Attributes:
        records: None when Cloudflare could not be read; why stands in `records_error`.
        kept: under NODE_POLICY=keep the node that stays, or why none does; else None.
    """

    version: str
    identity: NodeIdentity
    nodes: tuple[Node, ...]
    records: tuple[Record, ...] | None
    records_error: LifecycleError | None = None
    kept: Node | NothingKept | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What `cleanup` would do to the world that was read.

    Attributes:
        records: deletions; empty also when the zone could not be read.
        foreign: nodes of our name that are not ours and stay.
        key: the pre-auth key to make.
        kept: the node of ours that stays; None when none does.
    """

    nodes: tuple[DeleteNode, ...]
    records: tuple[DeleteRecord, ...]
    foreign: tuple[Node, ...]
    key: KeySpec
    kept: Node | None = None


class Cleanup:
    """The clean-up of one service.

    Args:
        now: gives aware UTC.
        stop: once set, no further step is begun.
        read_state: for NODE_POLICY=keep: gives the values of TS_KUBE_SECRET, None when there is no such Secret.
    """

    def __init__(
        self,
        settings: CleanupSettings,
        *,
        writers: apply.Writers,
        now: Callable[[], datetime],
        stop: Event,
        read_state: Callable[[], Mapping[str, bytes] | None] | None = None,
    ) -> None:
        self.settings = settings
        self._read_state = read_state
        self._writers = writers
        self._now = now
        self._stop = stop
        self.record_identity = RecordIdentity(settings.record_name, settings.mark, settings.vpn_prefixes)

    def run(self) -> None:
        """Do the whole work; at the first failure that matters nothing further is touched.

        Raises:
            LifecycleError: the pod has no fresh key; its message says why.
        """
        started = monotonic()
        # Before anything is deleted: without a place for the key, all else would be in vain.
        apply.check_key_file(self._writers.key_file)
        view = self.read()
        if view.records_error is not None:
            log.warning("zone.unreadable", error=str(view.records_error))
        if self.settings.headscale_user is None:
            log.warning("user.assumed", user=view.identity.user.name, reason="it is the only one; set HEADSCALE_USER")
        plan = self.plan(view)
        self._tell_kept(view.kept)
        for node in plan.foreign:
            warn_of_foreign_node(node, identity=view.identity)
        log.info("plan.made", headscale=view.version, nodes=len(view.nodes), deletions=len(plan.nodes))

        self._go_on()
        apply.delete_nodes(plan.nodes, self._writers.headscale, is_still_ours=view.identity.owns_node)
        self._go_on()
        key = apply.write_fresh_key(
            WriteFreshKey(
                plan.key,
                reason="every start of the pod needs a fresh key",
                kept_node_id=plan.kept.id if plan.kept else None,
                kept_machine_key=plan.kept.machine_key if plan.kept else None,
            ),
            headscale=self._writers.headscale,
            key_file=self._writers.key_file,
            now=self._now(),
        )
        deleted = self._delete_records(plan)
        self._warn_of_expiry(plan.kept)
        log.info(
            "pass.finished",
            nodes_deleted=len(plan.nodes),
            records_deleted=deleted,
            key_id=key.id,
            duration_s=round(monotonic() - started, 3),
        )

    def _warn_of_expiry(self, kept: Node | None) -> None:
        now = self._now()
        try:
            expiring = [api_key_warning(self._writers.headscale.api_key_expires_at(), now)]
        except ApiError as error:
            log.debug("api_key.unreadable", error=str(error))
            expiring = []
        if kept is not None:
            expiring.append(node_warning(kept, now))
        for event in expiring:
            if event is not None:
                log_event(event)

    def read(self) -> View:
        """Read both services side by side.

        Raises:
            ApiError: Headscale, or which node stays, could not be read, after all tries.
            UserError: it cannot be told which user is ours.
        """
        zone = _ZoneReading(self._writers.cloudflare, self.settings.record_name, timeout=self.settings.http_timeout)
        version = self._writers.headscale.version()
        user = choose_user(self._writers.headscale.users(), self.settings.headscale_user)
        nodes = tuple(self._writers.headscale.nodes())
        identity = NodeIdentity(self.settings.node_hostname, user, self.settings.authkey_tags)
        kept = None
        if self._read_state is not None:
            state = self._read_state()
            kept = choose_kept(nodes, identity=identity, state=state, version=version, now=self._now())
        records, error = zone.result()
        return View(version, identity, nodes, records, error, kept)

    def plan(self, view: View) -> Plan:
        """Decide what is to be done.

        Raises:
            NameTakenError: another owner of this program runs the name.
        """
        records = view.records or ()
        refuse_taken_name(records, identity=self.record_identity)
        settings = self.settings
        kept = view.kept if isinstance(view.kept, Node) else None
        nodes = plan_nodes(view.nodes, identity=view.identity, kept=kept.id if kept else None)
        leaving = {change.node.id for change in nodes}
        return Plan(
            nodes=tuple(nodes),
            records=tuple(
                plan_records(
                    records,
                    identity=self.record_identity,
                    staying=kept.addresses if kept else (),
                    others=[address for node in view.nodes if node.id not in leaving for address in node.addresses],
                    leave_one=settings.dns_cleanup == "keep",
                )
            ),
            foreign=tuple(foreign_nodes(view.nodes, identity=view.identity)),
            key=settings.key_spec(view.identity.user),
            kept=kept,
        )

    def _tell_kept(self, kept: Node | NothingKept | None) -> None:
        secret = self.settings.ts_kube_secret
        match kept:
            case NothingKept(reason):
                log.warning("node.not_kept", secret=secret, reason=reason, advice="its address will be another one")
            case Node():
                log.info("node.kept", node_id=kept.id, hostname=kept.hostname, reason=f"Secret {secret} names it")

    def _delete_records(self, plan: Plan) -> int:
        """Delete the stale records; a failure is for `dns-watch` to mend, and keeps no pod from starting."""
        if not plan.records:
            return 0
        try:
            apply.change_records(plan.records, self._writers.cloudflare)
        except ApiError as error:
            log.warning("record.delete_failed", error=str(error), reason="dns-watch will put the records right")
            return 0
        return len(plan.records)

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise StoppedError("asked to stop before the work was done; nothing needs undoing")


class _ZoneReading:
    """Everything at one name, read in a thread of its own so that it holds nobody up.

    Args:
        timeout: for all of it, counted from now.
    """

    def __init__(self, cloudflare: CloudflareReader, name: str, *, timeout: timedelta) -> None:
        self._deadline = monotonic() + timeout.total_seconds()
        self._records = in_background(lambda: tuple(cloudflare.records(name)), name="zone")

    def result(self) -> tuple[tuple[Record, ...] | None, LifecycleError | None]:
        """The records, or None and why they could not be read."""
        try:
            return self._records.result(max(0.0, self._deadline - monotonic())), None
        except TimeoutError:
            return None, LifecycleError("Cloudflare did not answer within HTTP_TIMEOUT")
        except LifecycleError as error:
            return None, error


def warn_of_foreign_node(node: Node, *, identity: NodeIdentity) -> None:
    """Say once that a node of our name stays, and what a person can do about it."""
    log.warning(
        "node.foreign",
        node_id=node.id,
        hostname=node.hostname,
        user=node.user.name if node.user else None,
        tags=sorted(node.tags),
        registered_by=str(node.registered_by),
        advice=(
            f"it is not {identity.user.name}'s, or came in without a pre-auth key, so it stays; if it is a "
            f"leftover of this service, run `headscale nodes delete --identifier {node.id}`"
        ),
    )
