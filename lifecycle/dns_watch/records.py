"""Keep the record true: read it when that is due, plan, apply, and leave Cloudflare alone when told to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import structlog

from lifecycle.apply import change_records
from lifecycle.clients.cloudflare.errors import UPSTREAM as CLOUDFLARE
from lifecycle.clients.cloudflare.writer import CloudflareWriter
from lifecycle.dns_watch.plan import (
    RecordPlan,
    needs_successor_check,
    plan_records,
    published_successor,
)
from lifecycle.domain.changes import CreateRecord
from lifecycle.domain.errors import ApiError, AuthError
from lifecycle.domain.model import IpAddress, Node, Record, RecordSpec, record_type
from lifecycle.domain.ownership import RecordIdentity
from lifecycle.health.status import Status
from lifecycle.runtime.retry import backoff_s, jittered
from lifecycle.settings.models import DnsWatchSettings

log = structlog.get_logger()

_MOMENT = timedelta(milliseconds=1)


class RecordKeeper:
    """Keeps the records of one name, and remembers when to look at them next.

    Args:
        successors: gives the nodes of later pods than this node's; raises ApiError.
        monotonic: seconds that never go back.
    """

    def __init__(
        self,
        settings: DnsWatchSettings,
        *,
        cloudflare: CloudflareWriter,
        successors: Callable[[Node], list[Node]],
        status: Status,
        monotonic: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._cloudflare = cloudflare
        self._successors = successors
        self._status = status
        self._monotonic = monotonic
        self.identity = RecordIdentity(settings.record_name, settings.mark, settings.vpn_prefixes)
        # What the records should have said when they were last read; None = they have to be read.
        self._compared: tuple[RecordSpec, ...] | None = None
        self._verify_at = 0.0
        self._not_before = 0.0
        self._failures = 0

    def specs(self, node: Node, interface: tuple[IpAddress, ...] | None) -> tuple[RecordSpec, ...]:
        """What the records of this node should say: an A record, and with DNS_IPV6 an AAAA record.

        Returns:
            Only addresses inside VPN_PREFIXES that this pod really has; empty when there is none.
        """
        addresses = self.identity.vpn_addresses(node.addresses)
        if interface is not None:
            addresses = tuple(address for address in addresses if address in interface)
        specs = (
            RecordSpec(self.identity.name, address, self._settings.dns_ttl, self.identity.mark) for address in addresses
        )
        return tuple(spec for spec in specs if spec.type == "A" or self._settings.dns_ipv6)

    def forget(self) -> None:
        """Whose the records should be is not known: they are read again before anything is taken for right."""
        self._compared = None

    def keep(self, node: Node, specs: tuple[RecordSpec, ...]) -> int:
        """Read, plan and apply, when that is due.

        Returns:
            How many changes were made.

        Raises:
            ApiError: a service could not be read, or a change not be confirmed; told to `failed`.
        """
        now = self._monotonic()
        due = specs != self._compared or now >= self._verify_at
        if due and self._status.in_sync and tuple(spec.address for spec in specs) != self._status.addresses:
            self._status.out_of_sync("the record has not been put right since the address changed")
        if not due or now < self._not_before:
            return 0
        self._compared = None
        plan = self._put_right(node, specs)
        self._failures = 0
        self._compared = specs
        # What was just made is looked at again soon: another pod may have made one in the same second.
        created = any(isinstance(change, CreateRecord) for change in plan.changes)
        settings = self._settings
        interval = min(settings.node_poll_interval, settings.verify_interval) if created else settings.verify_interval
        self._verify_at = self._monotonic() + jittered(interval.total_seconds())
        return len(plan.changes)

    def failed(self, error: ApiError) -> None:
        """Leave Cloudflare alone for a while, or for as long as it asked."""
        self._failures += 1
        wait_s = backoff_s(self._failures, longest_s=self._settings.verify_interval.total_seconds(), error=error)
        self._not_before = self._monotonic() + wait_s
        self._status.failed(error, failures=self._failures, wait_s=wait_s)

    def wait(self) -> timedelta | None:
        """How long until the records are to be looked at again; None when that is for the next look at Headscale."""
        at = self._not_before if self._compared is None else max(self._not_before, self._verify_at)
        left_s = at - self._monotonic()
        # A moment more: whoever wakes up a microsecond too early asks Headscale in vain.
        return timedelta(seconds=left_s) + _MOMENT if left_s > 0 else None

    def read(self, node: Node, specs: tuple[RecordSpec, ...]) -> RecordPlan | None:
        """Read the records and plan what they should become; None when this pod stands down.

        Raises:
            ApiError: a service could not be read.
        """
        records = self._cloudflare.records(self.identity.name)
        self._status.succeeded(CLOUDFLARE)
        if self._is_superseded(node, records):
            return None
        apex = None
        if any(record.type == "NS" for record in records):
            # Without the right to read the zone it is not known, and the record stands in the way.
            with suppress(AuthError):
                apex = self._cloudflare.zone_name()
        # The node has an address of such a type that the interface does not show, or not yet.
        types = {record_type(address) for address in self.identity.vpn_addresses(node.addresses)}
        if not self._settings.dns_ipv6:
            types.discard("AAAA")
        return plan_records(
            records,
            specs,
            identity=self.identity,
            ipv6=self._settings.dns_ipv6,
            apex=apex,
            unsure=frozenset(types - {spec.type for spec in specs}),
        )

    def _put_right(self, node: Node, specs: tuple[RecordSpec, ...]) -> RecordPlan:
        plan = self.read(node, specs)
        if plan is None:
            self._status.out_of_sync(f"node {self._status.superseded_by} of a later pod has the name")
            return RecordPlan()
        for record in plan.in_the_way:
            advice = advice_on_foreign_record(record, mark=self.identity.mark)
            log.error(
                "record.foreign",
                record=record.name,
                type=record.type,
                content=record.content,
                comment=record.comment,
                advice=advice,
            )
            self._status.out_of_sync(f"a {record.type} record that is not ours stands at {record.name}: {advice}")
        if plan.changes:
            self._status.out_of_sync("the record differs from what it should be, and was not put right yet")
        if not plan.in_the_way:
            change_records(plan.changes, self._cloudflare)
            self._status.verified(tuple(spec.address for spec in specs))
        return plan

    def _is_superseded(self, node: Node, records: list[Record]) -> bool:
        successor = None
        if needs_successor_check(records, identity=self.identity, node=node):
            successor = published_successor(records, self._successors(node), identity=self.identity, node=node)
        self.stand_down(successor, node_id=node.id)
        return successor is not None

    def stand_down(self, successor: Node | None, *, node_id: str | None) -> None:
        """Note for whom this pod stands down, None for nobody, and say so when that changes."""
        successor_id = successor.id if successor else None
        if successor_id == self._status.superseded_by:
            return
        self._status.superseded_by = successor_id
        if successor_id is None:
            log.info("node.reinstated", node_id=node_id)
        else:
            log.warning(
                "node.superseded",
                node_id=node_id,
                successor_id=successor_id,
                reason="a later pod of this service has the name; this one leaves the record alone",
            )


def advice_on_foreign_record(record: Record, *, mark: str) -> str:
    """What a person can do about a record that stands in the way."""
    if record.type == "CNAME":
        return "a CNAME allows no address beside it; delete it, or give the service another TS_HOSTNAME"
    if record.type == "NS":
        return "the name is delegated to other name servers; publish it there, or choose another TS_HOSTNAME"
    return f'clear its comment, or change it to "{mark}", to hand it over; or set DNS_OWNER to its owner; or delete it'
