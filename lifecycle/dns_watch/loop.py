"""The loop of dns-watch. Each pass observes, decides, applies the changes and logs."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from time import monotonic as system_monotonic

import structlog

from lifecycle.apply import Writers, change_records, write_fresh_key, write_metadata, write_restart_marker
from lifecycle.dns_watch.decide import conclude, decide, failure_event
from lifecycle.dns_watch.healing import usable_key_id
from lifecycle.dns_watch.observe import observe, vpn_interface, watch_config
from lifecycle.dns_watch.schedule import SLOWEST_POLL_S, poll_interval_s
from lifecycle.dns_watch.state import ApplyResult, Decision, InterfaceAddresses, Moment, RecordsRead, State
from lifecycle.dns_watch.status import Status
from lifecycle.domain.changes import Change, DeleteRecord, RecordChange, WriteFreshKey, WriteKeyMetadata, name_of
from lifecycle.domain.errors import ApiError, ConflictError, KeyFileError, NotRegisteredError, ResponseError
from lifecycle.domain.model import IpAddress
from lifecycle.runtime.logs import log_event
from lifecycle.settings.models import DnsWatchSettings

log = structlog.get_logger()


class DnsWatch:
    """Keeps one pod's records in sync with its node.

    Args:
        interface: returns the addresses of this pod's VPN interface; None if the interface does not exist. It raises
            OSError if they cannot be read.
        now: returns the current time in UTC, with its time zone.
        monotonic: returns seconds that never go back.
        status: what the health port reports, updated by each pass; a new `Status` if omitted.
    """

    def __init__(
        self,
        settings: DnsWatchSettings,
        *,
        writers: Writers,
        interface: Callable[[], Iterable[IpAddress] | None],
        now: Callable[[], datetime],
        monotonic: Callable[[], float] = system_monotonic,
        status: Status | None = None,
    ) -> None:
        self._config = watch_config(settings)
        self._writers = writers
        self._read_interface = interface
        self._now = now
        self._monotonic = monotonic
        self.status = status or new_status(settings, monotonic=monotonic)
        start_s = monotonic()
        self.state = State(interface_seen_s=start_s, interface_changed_s=start_s)
        if settings.access == "exec":
            reason = (
                "each poll runs a command in Headscale's pod and lists every node; HEADSCALE_ACCESS=api with an API "
                "key is cheaper and polls at POLL_INTERVAL"
            )
            log.info("poll.slowed", interval_s=self._config.poll_interval.total_seconds(), reason=reason)

    def interface_changed(self) -> bool:
        """Return True if this pod's VPN addresses differ from those at the last pass. No request is sent."""
        return self._vpn_interface() != self.state.interface

    def run_pass(self) -> float:
        """Make one pass. A failure is logged and retried after a backoff.

        Returns:
            Seconds until the next pass is due.

        Raises:
            NotRegisteredError: the node was not found in MAX_RETRIES lookups, and was never found before.
        """
        started_s = self._monotonic()
        self.status.pass_began()
        config = self._config
        observation = observe(self.state, self._writers, self._vpn_interface(), config=config, clock=self._moment)
        if not isinstance(observation.node, ApiError):
            self.status.record_success("Headscale")
        if isinstance(observation.records, RecordsRead):
            self.status.record_success("Cloudflare")
        decision = decide(self.state, observation, config=config, now=self._moment())
        self._report(decision)
        applied = self._apply(decision.changes)
        conclusion = conclude(decision, applied, config=config, now=self._moment())
        self._report(conclusion)
        self.state = conclusion.state
        key_id = usable_key_id(self.state, self._moment())
        # The marker makes tailscale's probe fail, so that it restarts with this key. None removes the marker.
        try:
            write_restart_marker(key_id, self._writers.key_file)
        except KeyFileError as error:
            # If the volume is read-only here, dns-watch can write no new key either, and needs no marker.
            log.debug("restart.marker_failed", error=str(error))
        self.status.state, self.status.restart_helps = self.state, key_id is not None
        self.status.poll_interval_s = poll_interval_s(self.state, config)
        failed = bool(decision.failures or conclusion.failures)
        duration_s = self._monotonic() - started_s
        self.status.pass_ended(conclusion.wait_s, duration_s=duration_s, failed=failed)
        if self.state.is_registered and not self.state.failures:
            changes = () if isinstance(applied, ApiError) else decision.changes
            log.info(
                "pass.finished",
                node_id=self.state.node.id if self.state.node else None,
                content=",".join(map(str, self.state.records.addresses)),
                changes=sum(isinstance(change, RecordChange) for change in changes),
                in_sync=self.state.records.in_sync,
                duration_s=round(duration_s, 3),
            )
        if decision.give_up is not None:
            raise NotRegisteredError(decision.give_up)
        return conclusion.wait_s

    def _vpn_interface(self) -> InterfaceAddresses:
        """Return this pod's VPN addresses. If they cannot be read, return those at the last pass."""
        with suppress(OSError):
            return vpn_interface(self._read_interface(), self._config)
        return self.state.interface

    def _apply(self, changes: tuple[Change, ...]) -> ApplyResult:
        for change in changes:
            match change:
                case WriteFreshKey():
                    headscale, key_file = self._writers.headscale, self._writers.key_file
                    try:
                        return write_fresh_key(change, headscale=headscale, key_file=key_file, now=self._now)
                    except (ApiError, KeyFileError) as error:
                        return error
                case WriteKeyMetadata():
                    # If the volume of the key file is read-only in this container, the metadata stays as cleanup wrote
                    # it.
                    with suppress(KeyFileError):
                        write_metadata(change, self._writers.key_file)
        return self._change_records(changes)

    def _change_records(self, changes: tuple[Change, ...]) -> ApiError | None:
        """Make the record changes, in one transaction for each name, and return the first failure.

        If Cloudflare refuses the changes at one name, the changes at the other names are still made. Aliases that point
        to the refused name are skipped, because the records there could be another owner's. After any other failure, no
        further changes are made.
        """
        names: dict[str, list[RecordChange]] = {}
        for change in changes:
            if isinstance(change, RecordChange):
                names.setdefault(name_of(change), []).append(change)
        failure: ApiError | None = None
        refused: set[str] = set()
        for name, name_changes in names.items():
            specs = [change.spec for change in name_changes if not isinstance(change, DeleteRecord)]
            if any(spec.content in refused for spec in specs):
                continue
            try:
                change_records(name_changes, self._writers.cloudflare)
            except (ConflictError, ResponseError) as error:
                refused.add(name)
                failure = failure or error
            except ApiError as error:
                return failure or error
        return failure

    def _report(self, decision: Decision) -> None:
        """Log and count what was decided."""
        for event in (*decision.events, *map(failure_event, decision.failures)):
            log_event(event)
        for failure in decision.failures:
            self.status.count_retry(failure.error, failure.wait_s)

    def _moment(self) -> Moment:
        utc = self._writers.headscale.server_time(self._now())
        return Moment(utc, self._monotonic(), random.random())  # noqa: S311 - not for a secret


def new_status(settings: DnsWatchSettings, *, monotonic: Callable[[], float] = system_monotonic) -> Status:
    """Return the status before the first pass."""
    slowest = timedelta(seconds=SLOWEST_POLL_S)
    longest = max(settings.effective_poll_interval, settings.retry_interval, settings.verify_interval, slowest)
    return Status(longest_interval=longest, verify_interval=settings.verify_interval, monotonic=monotonic)
