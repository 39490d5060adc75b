"""Make the planned changes. No other module calls a method that changes anything outside of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from queue import Full, Queue
from threading import Thread
from time import sleep
from typing import TYPE_CHECKING

import structlog

from lifecycle.clients.cloudflare.errors import UPSTREAM
from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.cloudflare.writer import CloudflareWriter
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.domain.backoff import retry_delay_s
from lifecycle.domain.changes import (
    CreateRecord,
    DeleteNode,
    DeleteRecord,
    RecordChange,
    WriteFreshKey,
    WriteKeyMetadata,
)
from lifecycle.domain.errors import ConflictError, KeyFileError, LifecycleError, TransientError
from lifecycle.domain.events import Event, info
from lifecycle.domain.model import KeyMetadata, Node, PreAuthKey
from lifecycle.domain.pod_events import PodEvent, pod_event
from lifecycle.keyfile.writer import KeyFileWriter
from lifecycle.readers import Readers
from lifecycle.runtime.clock import utc_now
from lifecycle.runtime.logs import log_event

if TYPE_CHECKING:
    # At run time, the program imports this client only with KUBERNETES_EVENTS=true.
    from lifecycle.clients.kubernetes.events import EventWriter

log = structlog.get_logger()

# How many Kubernetes Events may wait to be written.
_MAX_WAITING_EVENTS = 32

# By default, the API server deletes an Event after this time. Until then, the same Event is not written again.
_EVENT_LIFETIME = timedelta(hours=1)

_EVENT_ATTEMPTS = 5
_MAX_EVENT_DELAY_S = 300.0


@dataclass(frozen=True, slots=True)
class Writers(Readers):
    """The clients for everything that this program can change. All of them can also read."""

    headscale: HeadscaleWriter
    cloudflare: CloudflareWriter
    key_file: KeyFileWriter


def delete_nodes(
    changes: Iterable[DeleteNode], headscale: HeadscaleWriter, *, is_still_owned: Callable[[Node], bool]
) -> None:
    """Delete the nodes in order. Each node is read again directly before its deletion.

    Args:
        is_still_owned: called with the node as it is now; returns True if it may still be deleted.

    Raises:
        ApiError: the deletion of a node could not be confirmed. The nodes after it were not deleted.
    """
    for change in changes:
        node = change.node
        if node.online:
            # Headscale can report a node as online for 15 minutes after its pod was killed.
            log.warning("node.online", node_id=node.id, hostname=node.hostname, reason=change.reason)
        headscale.delete_node(node, is_still_owned=is_still_owned)
        log.info("node.deleted", node_id=node.id, hostname=node.hostname, reason=change.reason)


def change_records(changes: Sequence[RecordChange], cloudflare: CloudflareWriter) -> None:
    """Make all changes in one transaction, or none.

    Records to update or delete are read again first. A record to delete that no longer exists counts as deleted.

    Raises:
        ConflictError: a record was changed after the plan was made. Nothing was written.
        ApiError: it could not be confirmed that the changes were made.
    """
    changes = _remaining_changes(changes, cloudflare)
    cloudflare.change(changes)
    for change in changes:
        if isinstance(change, DeleteRecord):
            record = change.record
            log.info("record.deleted", record=record.name, type=record.type, was=record.content, reason=change.reason)
            continue
        # Unlike log.info, log_event can lead to a Kubernetes Event.
        spec, content, reason = change.spec, str(change.spec.content), change.reason
        if isinstance(change, CreateRecord):
            log_event(info("record.created", record=spec.name, type=spec.type, content=content, reason=reason))
        else:
            was = change.record.content
            log_event(info("record.updated", record=spec.name, type=spec.type, content=content, was=was, reason=reason))


def _remaining_changes(changes: Sequence[RecordChange], cloudflare: CloudflareReader) -> list[RecordChange]:
    """Read the records again, and return the changes without the deletions of records that no longer exist."""
    planned = [change.record for change in changes if not isinstance(change, CreateRecord)]
    current = {record.id: record for name in {record.name for record in planned} for record in cloudflare.records(name)}
    remaining: list[RecordChange] = []
    for change in changes:
        if not isinstance(change, CreateRecord):
            record = change.record
            if record.id not in current and isinstance(change, DeleteRecord):
                log.info("record.gone", record=record.name, type=record.type, was=record.content)
                continue
            if current.get(record.id) != record:
                raise ConflictError(
                    f"the {record.type} record {record.name} was changed or deleted after it was read (it was "
                    f"{record.content}). Nothing was written; the next run plans again",
                    upstream=UPSTREAM,
                )
        remaining.append(change)
    return remaining


def check_key_file(key_file: KeyFileWriter) -> None:
    """Raise KeyFileError if no key can be written to the key file."""
    key_file.check_writable()


def write_fresh_key(
    change: WriteFreshKey, *, headscale: HeadscaleWriter, key_file: KeyFileWriter, now: Callable[[], datetime]
) -> PreAuthKey:
    """Create a pre-auth key, and write it to the key file in place of the previous key.

    Args:
        now: returns the time by this machine's clock.

    Raises:
        ApiError: no usable key was created.
        KeyFileError: the key file could not be written. If a key was created, it was expired again.
    """
    check_key_file(key_file)
    spec = change.spec
    if change.replaces is not None:
        headscale.discard_pre_auth_key(change.replaces, spec.user, reason="it is replaced by a fresh key")
    key = headscale.create_pre_auth_key(spec, now=now)
    log.info(
        "pre_auth_key.created", key_id=key.id, user=spec.user.label, expires_at=key.expires_at, reason=change.reason
    )
    metadata = KeyMetadata(
        key.id,
        node_id=change.node_id,
        machine_key=change.machine_key,
        key_created_at=key.created_at,
    )
    try:
        key_file.write(key.secret, metadata)
    except KeyFileError:
        headscale.discard_pre_auth_key(key, spec.user, reason="the key file could not be written")
        raise
    log.info("key_file.written", path=str(key_file.path), key_id=key.id)
    return key


def write_metadata(change: WriteKeyMetadata, key_file: KeyFileWriter) -> None:
    """Replace the metadata file beside the key file, or raise KeyFileError."""
    key_file.write_metadata(change.metadata)
    log.debug("key_metadata.written", node_id=change.metadata.node_id, reason=change.reason)


def write_restart_marker(key_id: str | None, key_file: KeyFileWriter) -> None:
    """Write the file that makes the liveness probe of the tailscale container fail, or raise KeyFileError.

    Args:
        key_id: the new key with which the restarted container can register; None = remove the file.
    """
    if key_file.write_restart_marker(key_id):
        event = "restart.requested" if key_id is not None else "restart.withdrawn"
        log.info(event, path=str(key_file.restart_marker_path), key_id=key_id)


class EventRecorder:
    """Writes Kubernetes Events about this pod, in a thread that starts with the first Event.

    `record` neither waits nor raises an exception, because an Event only repeats a line of the log. A failure to write
    is logged; further failures are logged only after another Event was written successfully.
    """

    def __init__(
        self,
        connect: Callable[[], EventWriter],
        *,
        now: Callable[[], datetime] = utc_now,
        pause: Callable[[float], object] = sleep,
    ) -> None:
        self._connect = connect
        self._now = now
        self._pause = pause
        self._writer: EventWriter | None = None
        self._queue: Queue[PodEvent] = Queue(_MAX_WAITING_EVENTS)
        self._thread: Thread | None = None
        self._written: dict[PodEvent, datetime] = {}
        self._is_failing = False

    def record(self, event: Event) -> None:
        """Queue the Kubernetes Event of a log event that has one, or drop it if too many Events are waiting."""
        kubernetes_event = pod_event(event)
        if kubernetes_event is None:
            return
        with suppress(Full):
            self._queue.put_nowait(kubernetes_event)
        # If no thread can be started, no Kubernetes Event is written. The log has the event anyway.
        with suppress(RuntimeError):
            if self._thread is None:
                thread = Thread(target=self._run, name="events", daemon=True)
                thread.start()
                self._thread = thread

    def flush(self, timeout_s: float) -> None:
        """Wait until all Events are written, or until the time-out."""
        with self._queue.all_tasks_done:
            self._queue.all_tasks_done.wait_for(lambda: not self._queue.unfinished_tasks, timeout_s)

    def _run(self) -> None:
        while True:
            self._write(self._queue.get())
            self._queue.task_done()

    def _write(self, event: PodEvent) -> None:
        """Write an Event, unless the API server has it already. After a failure that can be temporary, try again."""
        now = self._now()
        self._written = {event: at for event, at in self._written.items() if now - at < _EVENT_LIFETIME}
        if event in self._written:
            return
        for attempt in range(1, _EVENT_ATTEMPTS + 1):
            try:
                self._writer = self._writer or self._connect()
                self._writer.create_event(event, self._now())
            except LifecycleError as error:
                if not self._is_failing:
                    log.warning("kubernetes_event.failed", reason=event.reason, error=str(error))
                self._is_failing = True
                if not isinstance(error, TransientError):
                    return
                delay_s = retry_delay_s(attempt, max_s=_MAX_EVENT_DELAY_S, jitter=0.0, error=error)
                self._pause(min(delay_s, _MAX_EVENT_DELAY_S))
            else:
                self._written[event] = now
                self._is_failing = False
                return
