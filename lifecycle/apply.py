"""Make changes. This is the only module that calls a method which changes anything outside the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

import structlog

from lifecycle.clients.cloudflare.errors import UPSTREAM
from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.cloudflare.writer import CloudflareWriter
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.domain.changes import (
    CreateRecord,
    DeleteNode,
    DeleteRecord,
    RecordChange,
    UpdateRecord,
    WriteFreshKey,
    WriteKeyMetadata,
)
from lifecycle.domain.errors import ConflictError, KeyFileError
from lifecycle.domain.model import KeyMetadata, Node, PreAuthKey
from lifecycle.keyfile.writer import KeyFileWriter

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Writers:
    """Everything that this program can change. Each of them can be read, too."""

    headscale: HeadscaleWriter
    cloudflare: CloudflareWriter
    key_file: KeyFileWriter


def delete_nodes(
    changes: Iterable[DeleteNode], headscale: HeadscaleWriter, *, is_still_ours: Callable[[Node], bool]
) -> None:
    """Delete the nodes in order; the first failure ends it.

    Each node is read again directly before it is deleted.

    Args:
        is_still_ours: called with the node as it is now; the node is deleted only if it returns true.

    Raises:
        ApiError: a deletion could not be confirmed. Earlier deletions stand.
    """
    for change in changes:
        node = change.node
        if node.online:
            # Headscale can report a node as online for a quarter of an hour after its pod died.
            log.warning("node.online", node_id=node.id, hostname=node.hostname, reason=change.reason)
        headscale.delete_node(node, still_ours=is_still_ours)
        log.info("node.deleted", node_id=node.id, hostname=node.hostname, reason=change.reason)


def change_records(changes: Sequence[RecordChange], cloudflare: CloudflareWriter) -> None:
    """Make all changes in one transaction, or none.

    A record that is updated or deleted is read again first: it may have changed hands since it was planned for.
    A record to be deleted that is gone already counts as deleted.

    Raises:
        ConflictError: a record is not the planned one; nothing was changed.
        ApiError: it could not be confirmed that the changes were made.
    """
    changes = _without_done(changes, cloudflare)
    cloudflare.change(
        deletes=[change.record for change in changes if isinstance(change, DeleteRecord)],
        updates=[(change.record, change.spec) for change in changes if isinstance(change, UpdateRecord)],
        creates=[change.spec for change in changes if isinstance(change, CreateRecord)],
    )
    for change in changes:
        match change:
            case CreateRecord(spec, reason):
                log.info("record.created", record=spec.name, type=spec.type, content=str(spec.address), reason=reason)
            case UpdateRecord(record, spec, reason):
                log.info(
                    "record.updated",
                    record=spec.name,
                    type=spec.type,
                    content=str(spec.address),
                    was=record.content,
                    reason=reason,
                )
            case DeleteRecord(record, reason):
                log.info("record.deleted", record=record.name, type=record.type, was=record.content, reason=reason)
            case _:
                assert_never(change)


def _without_done(changes: Sequence[RecordChange], cloudflare: CloudflareReader) -> list[RecordChange]:
    """Return the changes without the deletions of records that are gone.

    Raises:
        ConflictError: another record differs from the planned one.
    """
    planned = [change.record for change in changes if not isinstance(change, CreateRecord)]
    current = {record.id: record for name in {record.name for record in planned} for record in cloudflare.records(name)}
    left: list[RecordChange] = []
    for change in changes:
        if isinstance(change, CreateRecord):
            left.append(change)
            continue
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
        left.append(change)
    return left


def check_key_file(key_file: KeyFileWriter) -> None:
    """Check that a key could be written, before anything is changed for it.

    Raises:
        KeyFileError: it could not be written.
    """
    key_file.check_writable()


def write_fresh_key(
    change: WriteFreshKey, *, headscale: HeadscaleWriter, key_file: KeyFileWriter, now: datetime
) -> PreAuthKey:
    """Create a pre-auth key and replace the one in the key file with it; the time is by our clock.

    Raises:
        ApiError: no usable key was created.
        KeyFileError: the key could not be written, and was expired again if it had been created.
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
        kept_node_id=change.kept_node_id,
        kept_machine_key=change.kept_machine_key,
        key_created_at=key.created_at,
    )
    try:
        key_file.write(key.secret, metadata)
    except KeyFileError:
        headscale.discard_pre_auth_key(key, spec.user, reason="it could not be written")
        raise
    log.info("key_file.written", path=str(key_file.path), key_id=key.id)
    return key


def write_metadata(change: WriteKeyMetadata, key_file: KeyFileWriter) -> None:
    """Replace the metadata beside the key.

    Raises:
        KeyFileError: it was not replaced.
    """
    key_file.write_metadata(change.metadata)
    log.debug("key_metadata.written", node_id=change.metadata.kept_node_id, reason=change.reason)


def write_restart_marker(key_id: str | None, key_file: KeyFileWriter) -> None:
    """Make the probe of the tailscale container fail, or pass again if no key makes a restart help.

    Raises:
        KeyFileError: the marker was neither written nor removed.
    """
    if not key_file.write_restart_marker(key_id):
        return
    event = "restart.requested" if key_id is not None else "restart.withdrawn"
    log.info(event, path=str(key_file.restart_marker_path), key_id=key_id)
