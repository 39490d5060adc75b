"""One pass of `dns-watch`: find this pod's node, keep its record, say how it went and when to come back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic as system_monotonic

import structlog

from lifecycle.apply import Writers
from lifecycle.clients.headscale.dialect import UPSTREAM as HEADSCALE
from lifecycle.dns_watch.find import NodeFinder
from lifecycle.dns_watch.heal import Healer
from lifecycle.dns_watch.plan import RecordPlan, Unidentified
from lifecycle.dns_watch.records import RecordKeeper
from lifecycle.domain.errors import ApiError, NotRegisteredError
from lifecycle.domain.model import IpAddress, Node
from lifecycle.expiry import ExpiryWatch
from lifecycle.health.status import Status
from lifecycle.runtime.retry import backoff_s, jittered, shortened
from lifecycle.settings.models import DnsWatchSettings

log = structlog.get_logger()

# How long a pod may take to bring its VPN interface up before it is taken to have none.
INTERFACE_GRACE_S = 30.0

Interface = Callable[[], tuple[IpAddress, ...] | None]


@dataclass(frozen=True, slots=True)
class Preview:
    """What a pass would do now.

    Attributes:
        reason: why nothing would be done although the node is known; "" when that is not so.
        mark: the comment that makes a record ours.
    """

    node: Node | Unidentified
    plan: RecordPlan
    mark: str
    reason: str = ""


class DnsWatch:
    """The watch over one pod's record.

    Args:
        interface: gives the addresses of this pod's VPN interface now; None when there is none.
        now: gives aware UTC.
        monotonic: seconds that never go back.
    """

    def __init__(
        self,
        settings: DnsWatchSettings,
        *,
        writers: Writers,
        interface: Interface,
        now: Callable[[], datetime],
        monotonic: Callable[[], float] = system_monotonic,
        status: Status | None = None,
    ) -> None:
        self._settings = settings
        self._interface = interface
        self._now = now
        self._monotonic = monotonic
        headscale, key_file = writers.headscale, writers.key_file
        self._headscale = headscale
        self.status = status or new_status(settings, monotonic=monotonic)
        self._finder = NodeFinder(settings, headscale=headscale, key_file=key_file, now=now)
        self._healer = Healer(settings, headscale=headscale, key_file=key_file, now=now, monotonic=monotonic)
        self._expiry = ExpiryWatch(headscale, now=now, monotonic=monotonic)
        self._keeper = RecordKeeper(
            settings,
            cloudflare=writers.cloudflare,
            successors=self._finder.successors,
            status=self.status,
            monotonic=monotonic,
        )
        # What is remembered from pass to pass says only when to look next.
        self._seen_interface: tuple[IpAddress, ...] | None = None
        # When the pod had an interface last, or when it started.
        self._interface_at = monotonic()
        self._looks = 0
        self._eager_from = 0
        self._failures = 0
        self._told_slow_polling = False

    def interface_changed(self) -> bool:
        """Whether the VPN address of this pod is another than at the last pass; costs no request."""
        return self._vpn_addresses() != self._seen_interface

    def run_pass(self) -> float:
        """Make one pass; what is down is logged and tried again later.

        Returns:
            Seconds until the next pass is due.

        Raises:
            NotRegisteredError: Headscale answered MAX_RETRIES times, and our node was never there.
        """
        started = self._monotonic()
        self.status.began()
        failed_before = self.status.passes["failed"]
        wait_s = self._pass(started)
        if self.status.passes["failed"] == failed_before:
            self.status.passes["finished"] += 1
        self.status.passes_s += self._monotonic() - started
        self.status.progressed(wait_s)
        return wait_s

    def preview(self) -> Preview:
        """Make one pass without its writes, as a pod would that has waited for its interface long enough.

        Raises:
            ApiError: something could not be read.
        """
        interface = self._vpn_addresses()
        mark = self._keeper.identity.mark
        node = self._finder.find(interface, waited=True)
        if isinstance(node, Unidentified):
            return Preview(node, RecordPlan(), mark)
        specs = self._keeper.specs(node, interface)
        if not specs:
            return Preview(node, RecordPlan(), mark, reason=self._why_unpublishable(node))
        plan = self._keeper.read(node, specs)
        if plan is None:
            reason = f"node {self.status.superseded_by} of a later pod has the name"
            return Preview(node, RecordPlan(), mark, reason=reason)
        return Preview(node, plan, mark)

    def _pass(self, started: float) -> float:
        interface = self._vpn_addresses()
        if interface is not None:
            self._interface_at = started
        if interface != self._seen_interface:
            # Something happened: look often again, from now on.
            self._seen_interface = interface
            self._eager_from = self._looks
            self._healer.interface_changed()
        waited = started - self._interface_at >= INTERFACE_GRACE_S or not self._settings.tailscale_interface
        try:
            found = self._finder.find(interface, waited=waited)
            self._note_version()
            self.status.succeeded(HEADSCALE)
            self._note_whether_found(found)
        except ApiError as error:
            self._healer.unsure()
            # By now the node may be back already; and without Headscale, no restart lets it in.
            self.status.restart_helps = False
            self._failures += 1
            pause = backoff_s(self._failures, longest_s=self._longest_wait().total_seconds(), error=error)
            wait_s = self._far_enough(pause)
            self.status.failed(error, failures=self._failures, wait_s=wait_s)
            return wait_s
        self._failures = 0
        self._expiry.look_at_api_key()
        self.status.api_key_expires_at = self._expiry.api_key_expires_at
        if isinstance(found, Unidentified):
            return self._not_registered(found)
        changes = self._keep_records(found, interface)
        log.info(
            "pass.finished",
            node_id=found.id,
            content=",".join(map(str, self.status.addresses)),
            changes=changes,
            in_sync=self.status.in_sync,
            duration_s=round(self._monotonic() - started, 3),
        )
        return self._until_next()

    def _note_version(self) -> None:
        # Only for people: which node is ours was told without it.
        with suppress(ApiError):
            self.status.headscale_version = self._headscale.version()

    def _note_whether_found(self, found: Node | Unidentified) -> None:
        """Tell status and healer what the look at Headscale gave.

        Raises:
            ApiError: the node is lost, and Headscale could not be asked about the key.
        """
        status = self.status
        status.registered = isinstance(found, Node)
        try:
            if isinstance(found, Node):
                self._note_found(found)
            else:
                self._keeper.forget()
                status.node_expires_at = None
                status.out_of_sync(found.reason)
                self._note_missing()
        finally:
            status.lost = str(self._healer.lost) if self._healer.lost else None
            status.restart_helps = self._healer.restart_helps

    def _note_found(self, node: Node) -> None:
        status = self.status
        if node.id != status.node_id:
            log.info(
                "node.registered",
                node_id=node.id,
                hostname=node.hostname,
                addresses=[str(address) for address in node.addresses],
            )
            self._keeper.forget()
        status.node_id = node.id
        status.ever_registered = True
        status.node_expires_at = node.expires_at
        self._expiry.look_at_node(node)
        self._looks = self._eager_from = 0
        self._healer.node_found()
        self._tell_slow_polling()

    def _note_missing(self) -> None:
        loss, identity = self._finder.loss, self._finder.identity
        if loss is None or identity is None:
            # Who has the name stays as it was judged last, too.
            self._healer.unsure()
            return
        successor = self._finder.successor
        self._keeper.stand_down(successor, node_id=self.status.node_id)
        self._healer.node_missing(loss, user=identity.user, superseded=successor is not None)

    def _not_registered(self, answer: Unidentified) -> float:
        self._looks += 1
        settings = self._settings
        if not self.status.ever_registered and 0 < settings.max_retries <= self._looks:
            raise NotRegisteredError(
                f"the node {settings.node_hostname} was not there in {self._looks} looks: {answer.reason}. "
                "See the log of the tailscale container; MAX_RETRIES and RETRY_INTERVAL set how long to wait"
            )
        log.warning("pass.skipped", reason=answer.reason, looks=self._looks)
        # 1, 1, 2, 2, 4, 4 … seconds: when a cluster boots, hundreds ask at once and each list is dear.
        growing_s = 2.0 ** min((self._looks - self._eager_from - 1) // 2, 16)
        longest = self._longest_wait() if self.status.ever_registered else settings.retry_interval
        if self.status.restart_helps:
            # The probe that restarts tailscale is to hear soon that it has worked.
            longest = min(settings.retry_interval, settings.node_poll_interval)
        return self._far_enough(shortened(min(growing_s, longest.total_seconds())))

    def _keep_records(self, node: Node, interface: tuple[IpAddress, ...] | None) -> int:
        specs = self._keeper.specs(node, interface)
        if not specs:
            reason = self._why_unpublishable(node)
            self._keeper.forget()
            self.status.out_of_sync(reason)
            addresses = [str(address) for address in node.addresses]
            log.error("address.unpublishable", node_id=node.id, addresses=addresses, reason=reason)
            return 0
        try:
            return self._keeper.keep(node, specs)
        except ApiError as error:
            self._keeper.failed(error)
            return 0

    def _why_unpublishable(self, node: Node) -> str:
        if any(not self._keeper.identity.is_vpn_address(address) for address in node.addresses):
            return "the node's address is outside VPN_PREFIXES; set it to Headscale's own prefixes"
        if node.addresses and not self._settings.dns_ipv6:
            return "the node has no IPv4 address that this pod has too; with IPv6 alone, set DNS_IPV6=true"
        return "the node has no address that this pod has too"

    def _until_next(self) -> float:
        """Seconds until Headscale is to be asked again, or the records to be read, whichever is sooner."""
        poll_s = jittered(self._settings.node_poll_interval.total_seconds())
        records_wait = self._keeper.wait()
        return poll_s if records_wait is None else self._far_enough(min(poll_s, records_wait.total_seconds()))

    def _longest_wait(self) -> timedelta:
        return max(self._settings.retry_interval, self._settings.node_poll_interval)

    def _far_enough(self, wait_s: float) -> float:
        """The wait, or a longer one: each pass asks Headscale, and once registered not too often."""
        least_s = self._settings.least_poll_interval.total_seconds() if self.status.ever_registered else 0.0
        return wait_s if wait_s >= least_s else jittered(least_s)

    def _tell_slow_polling(self) -> None:
        if self._settings.access == "exec" and not self._told_slow_polling:
            self._told_slow_polling = True
            log.info(
                "poll.slowed",
                interval_s=self._settings.node_poll_interval.total_seconds(),
                reason="each look runs a command in Headscale's pod and lists every node; HEADSCALE_ACCESS=api with "
                "an API key is cheaper, and looks every POLL_INTERVAL",
            )

    def _vpn_addresses(self) -> tuple[IpAddress, ...] | None:
        addresses = self._interface()
        if addresses is None:
            return None
        return tuple(sorted(self._keeper.identity.vpn_addresses(addresses), key=str))


def new_status(settings: DnsWatchSettings, *, monotonic: Callable[[], float] = system_monotonic) -> Status:
    """The status of a watch that has not begun."""
    longest = max(settings.node_poll_interval, settings.retry_interval, settings.verify_interval)
    return Status(longest_interval=longest, verify_interval=settings.verify_interval, monotonic=monotonic)
