"""One pass of `dns-watch`: find this pod's node, read its record when that is due, plan, apply."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic as system_monotonic

import structlog

from lifecycle.clients.cloudflare import Cloudflare
from lifecycle.clients.headscale.client import Headscale
from lifecycle.dns_watch.apply import apply
from lifecycle.dns_watch.plan import (
    CreateRecord,
    Hints,
    NoAnswer,
    RecordPlan,
    choose_node,
    needs_successor_check,
    plan_records,
    published_successor,
    successors,
)
from lifecycle.errors import ApiError, AuthError, KeyFileError, NotFoundError, NotRegisteredError, UserError
from lifecycle.keyfile import KeyFile, KeyNote
from lifecycle.model import IpAddress, Node, Record, RecordSpec
from lifecycle.ownership import NodeIdentity, RecordIdentity, choose_user
from lifecycle.retry import jittered, pause_s
from lifecycle.settings import DnsWatchSettings

log = structlog.get_logger()

# How long a pod may take to bring its VPN interface up before it is taken to have none.
INTERFACE_GRACE_S = 30.0

Interface = Callable[[], tuple[IpAddress, ...] | None]


@dataclass(slots=True)
class Schedule:
    """When to look next; the only thing that passes leave to one another.

    Attributes:
        node_id: where our node was found last: a look by id is cheap, a list is not.
        identity: by what it was ours; None until Headscale told its users.
        interface: the VPN addresses that the last pass saw.
        looks: how often Headscale answered without our node, since the start or since it was last there.
        eager_from: the count of looks from which on they are frequent again.
        compared: what the record should have said when it was last read; None = it has to be read.
        verify_at: when it is to be read again although nothing changed.
        cloudflare_not_before: until then Cloudflare is left alone.
    """

    node_id: str | None = None
    identity: NodeIdentity | None = None
    interface: tuple[IpAddress, ...] | None = None
    looks: int = 0
    eager_from: int = 0
    headscale_failures: int = 0
    cloudflare_failures: int = 0
    compared: tuple[RecordSpec, ...] | None = None
    verify_at: float = 0.0
    cloudflare_not_before: float = 0.0


@dataclass(slots=True)
class Status:
    """What the last passes found, for people and probes; no pass decides anything by it.

    Attributes:
        registered: our node has been seen in Headscale.
        in_sync: the record was right when it was last looked at.
        reason: why it is not right, or not known to be; "" when it is.
        superseded_by: the id of the node for which this pod stands down.
        addresses: what was published last.
    """

    registered: bool = False
    in_sync: bool = False
    reason: str = "no pass has finished yet"
    superseded_by: str | None = None
    addresses: tuple[IpAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class Preview:
    """What a pass would do now.

    Attributes:
        reason: why nothing would be done although the node is known; "" when that is not so.
        mark: the comment that makes a record ours.
    """

    node: Node | NoAnswer
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
        headscale: Headscale,
        cloudflare: Cloudflare,
        interface: Interface,
        now: Callable[[], datetime],
        monotonic: Callable[[], float] = system_monotonic,
    ) -> None:
        self._settings = settings
        self._headscale = headscale
        self._cloudflare = cloudflare
        self._interface = interface
        self._now = now
        self._monotonic = monotonic
        self._started = monotonic()
        self._key_file = KeyFile(settings.authkey_output_path)
        self._records = RecordIdentity(settings.record_name, settings.mark, settings.vpn_prefixes)
        self._next = Schedule()
        self._said: set[str] = set()
        self.status = Status()

    def interface_changed(self) -> bool:
        """Whether the VPN address of this pod is another than at the last pass; costs no request."""
        return self._vpn_addresses() != self._next.interface

    def run_pass(self) -> float:
        """Make one pass; what is down is logged and tried again later.

        Returns:
            Seconds until the next pass is due.

        Raises:
            NotRegisteredError: Headscale answered MAX_RETRIES times, and our node was never there.
        """
        started = self._monotonic()
        interface = self._vpn_addresses()
        if interface != self._next.interface:
            self._next.interface = interface
            self._next.eager_from = self._next.looks
        try:
            found = self.find_node(interface)
        except ApiError as error:
            return self._headscale_failed(error)
        self._next.headscale_failures = 0
        if isinstance(found, NoAnswer):
            return self._not_registered(found)
        self._registered(found)
        specs = self.specs(found, interface)
        changes = self._keep_record(found, specs) if specs else self._unpublishable(found)
        log.info(
            "pass.finished",
            node_id=found.id,
            content=",".join(str(spec.address) for spec in specs),
            changes=changes,
            in_sync=self.status.in_sync,
            duration_s=round(self._monotonic() - started, 3),
        )
        return self._until_next()

    def preview(self) -> Preview:
        """Make one pass without its writes, as a pod would that has waited for its interface long enough.

        Raises:
            ApiError: something could not be read.
        """
        interface = self._vpn_addresses()
        self._started = self._monotonic() - INTERFACE_GRACE_S
        node = self.find_node(interface)
        if isinstance(node, NoAnswer):
            return Preview(node, RecordPlan(), self._records.mark)
        specs = self.specs(node, interface)
        if not specs:
            self._unpublishable(node)
            return Preview(node, RecordPlan(), self._records.mark, self.status.reason)
        records = self._cloudflare.records(self._records.name)
        if self._is_superseded(node, records):
            reason = f"node {self.status.superseded_by} of a later pod has the name"
            return Preview(node, RecordPlan(), self._records.mark, reason)
        return Preview(node, self.plan(records, specs), self._records.mark)

    def find_node(self, interface: tuple[IpAddress, ...] | None) -> Node | NoAnswer:
        """Read this pod's node: by id where it is known, else from the whole list.

        Raises:
            ApiError: Headscale could not be read.
        """
        known = self._known_node(interface)
        if known is not None:
            return known
        try:
            user = choose_user(self._headscale.users(), self._settings.headscale_user)
            note = self._key_file.read_note()
        except (UserError, KeyFileError) as error:
            return NoAnswer(str(error))
        if self._settings.headscale_user is None:
            self._say_once("user.assumed", user=user.name, reason="it is the only one; set HEADSCALE_USER")
        identity = NodeIdentity(self._settings.node_hostname, user, self._settings.authkey_tags)
        self._next.identity = identity
        nodes = self._headscale.nodes()
        found = choose_node(nodes, identity=identity, hints=self._hints(interface, note), now=self._now())
        if isinstance(found, NoAnswer) and self._next.node_id is not None:
            # Our node is gone. Should a later pod of this service be there, it has the name now.
            later = successors(nodes, node_id=self._next.node_id, identity=identity, now=self._now())
            self._stand_down(later[-1] if later else None)
        return found

    def specs(self, node: Node, interface: tuple[IpAddress, ...] | None) -> tuple[RecordSpec, ...]:
        """What the records of this node should say: an A record, and with DNS_IPV6 an AAAA record.

        Returns:
            Only addresses inside VPN_PREFIXES that this pod really has; empty when there is none.
        """
        addresses = self._records.vpn_addresses(node.addresses)
        if interface is not None:
            addresses = tuple(address for address in addresses if address in interface)
        specs = (
            RecordSpec(self._records.name, address, self._settings.dns_ttl, self._records.mark) for address in addresses
        )
        return tuple(spec for spec in specs if spec.type == "A" or self._settings.dns_ipv6)

    def plan(self, records: list[Record], specs: tuple[RecordSpec, ...]) -> RecordPlan:
        """Compare the records with what they should say.

        Raises:
            ApiError: the zone's name was needed and could not be read.
        """
        apex = None
        if any(record.type == "NS" for record in records):
            # Without the right to read the zone it is not known, and the record stands in the way.
            with suppress(AuthError):
                apex = self._cloudflare.zone_name()
        return plan_records(records, specs, identity=self._records, ipv6=self._settings.dns_ipv6, apex=apex)

    def _known_node(self, interface: tuple[IpAddress, ...] | None) -> Node | None:
        if self._next.node_id is None or self._next.identity is None:
            return None
        try:
            node = self._headscale.node(self._next.node_id)
        except NotFoundError:
            return None
        moved = bool(interface) and not set(node.addresses) & set(interface or ())
        if moved or node.expired(self._now()) or not self._next.identity.owns_node(node):
            return None
        return node

    def _hints(self, interface: tuple[IpAddress, ...] | None, note: KeyNote | None) -> Hints:
        waited = self._monotonic() - self._started >= INTERFACE_GRACE_S or not self._settings.tailscale_interface
        return Hints(
            interface=interface,
            pre_auth_key_id=note.pre_auth_key_id if note else None,
            kept_node_id=note.kept_node_id if note else None,
            waited=waited,
        )

    def _vpn_addresses(self) -> tuple[IpAddress, ...] | None:
        addresses = self._interface()
        return None if addresses is None else tuple(sorted(self._records.vpn_addresses(addresses), key=str))

    def _registered(self, node: Node) -> None:
        if node.id != self._next.node_id:
            log.info(
                "node.registered",
                node_id=node.id,
                hostname=node.hostname,
                addresses=[str(address) for address in node.addresses],
            )
            self._next.compared = None
        self._next.node_id = node.id
        self._next.looks = self._next.eager_from = 0
        self.status.registered = True

    def _not_registered(self, answer: NoAnswer) -> float:
        self._next.looks += 1
        self._next.compared = None
        self._out_of_sync(answer.reason)
        settings = self._settings
        if not self.status.registered and 0 < settings.max_retries <= self._next.looks:
            raise NotRegisteredError(
                f"the node {settings.node_hostname} was not there in {self._next.looks} looks: {answer.reason}. "
                "See the log of the tailscale container; MAX_RETRIES and RETRY_INTERVAL set how long to wait"
            )
        log.warning("pass.skipped", reason=answer.reason, looks=self._next.looks)
        # 1, 1, 2, 2, 4, 4 … seconds: when a cluster boots, hundreds ask at once and each list is dear.
        growing_s = 2.0 ** min((self._next.looks - self._next.eager_from - 1) // 2, 16)
        longest = self._longest_headscale_wait() if self.status.registered else settings.retry_interval
        return jittered(min(growing_s, longest.total_seconds()))

    def _headscale_failed(self, error: ApiError) -> float:
        self._next.headscale_failures += 1
        self._log_failure(error, self._next.headscale_failures)
        longest_s = self._longest_headscale_wait().total_seconds()
        return pause_s(self._next.headscale_failures, longest_s=longest_s, error=error)

    def _longest_headscale_wait(self) -> timedelta:
        return max(self._settings.retry_interval, self._settings.poll_interval)

    def _unpublishable(self, node: Node) -> int:
        self._next.compared = None
        if any(not self._records.is_vpn_address(address) for address in node.addresses):
            reason = "the node's address is outside VPN_PREFIXES; set it to Headscale's own prefixes"
        elif node.addresses and not self._settings.dns_ipv6:
            reason = "the node has no IPv4 address that this pod has too; with IPv6 alone, set DNS_IPV6=true"
        else:
            reason = "the node has no address that this pod has too"
        log.error(
            "address.unpublishable",
            node_id=node.id,
            addresses=[str(address) for address in node.addresses],
            reason=reason,
        )
        self._out_of_sync(reason)
        return 0

    def _keep_record(self, node: Node, specs: tuple[RecordSpec, ...]) -> int:
        """Read, plan and apply, when that is due and Cloudflare is not to be left alone.

        Returns:
            How many changes were made.
        """
        now = self._monotonic()
        due = specs != self._next.compared or now >= self._next.verify_at
        if not due or now < self._next.cloudflare_not_before:
            return 0
        self._next.compared = None
        try:
            plan = self._put_record_right(node, specs)
        except ApiError as error:
            self._cloudflare_failed(error)
            return 0
        self._next.cloudflare_failures = 0
        self._next.compared = specs
        # What was just made is looked at again soon: another pod may have made one in the same second.
        created = any(isinstance(change, CreateRecord) for change in plan.changes)
        interval = min(self._settings.poll_interval, self._settings.verify_interval)
        if not created:
            interval = self._settings.verify_interval
        self._next.verify_at = self._monotonic() + jittered(interval.total_seconds())
        return len(plan.changes)

    def _put_record_right(self, node: Node, specs: tuple[RecordSpec, ...]) -> RecordPlan:
        records = self._cloudflare.records(self._records.name)
        if self._is_superseded(node, records):
            self._out_of_sync(f"node {self.status.superseded_by} of a later pod has the name")
            return RecordPlan()
        plan = self.plan(records, specs)
        for record in plan.in_the_way:
            advice = advice_on_foreign_record(record, mark=self._records.mark)
            log.error(
                "record.foreign",
                record=record.name,
                type=record.type,
                content=record.content,
                comment=record.comment,
                advice=advice,
            )
            self._out_of_sync(f"a {record.type} record that is not ours stands at {record.name}: {advice}")
        if not plan.in_the_way:
            apply(plan.changes, self._cloudflare)
            self.status.in_sync = True
            self.status.reason = ""
            self.status.addresses = tuple(spec.address for spec in specs)
        return plan

    def _is_superseded(self, node: Node, records: list[Record]) -> bool:
        successor = None
        identity = self._next.identity
        if identity is not None and needs_successor_check(records, identity=self._records, node=node):
            later = successors(self._headscale.nodes(), node_id=node.id, identity=identity, now=self._now())
            successor = published_successor(records, later, identity=self._records)
        self._stand_down(successor)
        return successor is not None

    def _stand_down(self, successor: Node | None) -> None:
        """Note for whom this pod stands down, and say so when that changes."""
        successor_id = successor.id if successor else None
        if successor_id == self.status.superseded_by:
            return
        self.status.superseded_by = successor_id
        if successor_id is None:
            log.info("node.reinstated", node_id=self._next.node_id)
        else:
            log.warning(
                "node.superseded",
                node_id=self._next.node_id,
                successor_id=successor_id,
                reason="a later pod of this service has the name; this one leaves the record alone",
            )

    def _out_of_sync(self, reason: str) -> None:
        self.status.in_sync = False
        self.status.reason = reason

    def _cloudflare_failed(self, error: ApiError) -> None:
        self._next.cloudflare_failures += 1
        self._log_failure(error, self._next.cloudflare_failures)
        longest_s = self._settings.verify_interval.total_seconds()
        pause = pause_s(self._next.cloudflare_failures, longest_s=longest_s, error=error)
        self._next.cloudflare_not_before = self._monotonic() + pause

    def _log_failure(self, error: ApiError, failures: int) -> None:
        level = log.error if isinstance(error, AuthError) else log.warning
        level(
            "pass.failed",
            service=error.service,
            error=str(error),
            error_type=type(error).__name__,
            failures_in_a_row=failures,
        )

    def _until_next(self) -> float:
        """Seconds until Headscale is to be asked again, or the record to be read, whichever is sooner."""
        poll_s = jittered(self._settings.poll_interval.total_seconds())
        schedule = self._next
        record_at = schedule.cloudflare_not_before
        if schedule.compared is not None:
            record_at = max(record_at, schedule.verify_at)
        # Without a failure or a comparison there is nothing to wait for but the next poll.
        waiting = schedule.compared is not None or schedule.cloudflare_failures > 0
        return min(poll_s, max(record_at - self._monotonic(), 0.0)) if waiting else poll_s

    def _say_once(self, event: str, **keys: object) -> None:
        if event not in self._said:
            self._said.add(event)
            log.warning(event, **keys)


def advice_on_foreign_record(record: Record, *, mark: str) -> str:
    """What a person can do about a record that stands in the way."""
    if record.type == "CNAME":
        return "a CNAME allows no address beside it; delete it, or give the service another TS_HOSTNAME"
    if record.type == "NS":
        return "the name is delegated to other name servers; publish it there, or choose another TS_HOSTNAME"
    return f'clear its comment, or change it to "{mark}", to hand it over; or set DNS_OWNER to its owner; or delete it'
