"""Make changes. With the key file's writer, this is the only module that changes anything outside the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import assert_never

import structlog

from lifecycle.clients.cloudflare.writer import CloudflareWriter
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.domain.changes import CreateRecord, DeleteNode, DeleteRecord, RecordChange, UpdateRecord
from lifecycle.domain.errors import ApiError, KeyFileError
from lifecycle.domain.model import KeySpec, Node, PreAuthKey
from lifecycle.keyfile import KeyFile, KeyMetadata

log = structlog.get_logger()


def delete_nodes(
    changes: Iterable[DeleteNode], headscale: HeadscaleWriter, *, is_still_ours: Callable[[Node], bool]
) -> None:
    """Delete the nodes in order; the first failure ends it.

    Args:
        changes: the nodes as they were when the deletion was planned.
        headscale: each node is read again before it is deleted, and its deletion is confirmed.
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

    Raises:
        ApiError: it could not be confirmed that the changes were made.
    """
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


def write_fresh_key(
    spec: KeySpec, *, headscale: HeadscaleWriter, key_file: KeyFile, now: datetime, kept_node_id: str | None = None
) -> PreAuthKey:
    """Create a pre-auth key and replace the one in the key file with it.

    Args:
        spec: the key to create.
        headscale: the server that creates it.
        key_file: known to be writable; the old key stays in it until the new one is complete.
        now: aware UTC.
        kept_node_id: the node whose state this pod keeps, for the key metadata.

    Raises:
        ApiError: no usable key was created.
        KeyFileError: the key could not be written, and was expired again.
    """
    key = headscale.create_pre_auth_key(spec, now=now)
    log.info("pre_auth_key.created", key_id=key.id, user=spec.user.name, expires_at=key.expires_at)
    try:
        key_file.write(key.secret, KeyMetadata(pre_auth_key_id=key.id, kept_node_id=kept_node_id))
    except KeyFileError:
        _expire_unwritten(key, spec, headscale)
        raise
    log.info("key_file.written", path=str(key_file.path), key_id=key.id)
    return key


def _expire_unwritten(key: PreAuthKey, spec: KeySpec, headscale: HeadscaleWriter) -> None:
    try:
        headscale.expire_pre_auth_key(key, spec.user)
    except ApiError as error:
        # The key expires by itself, and its secret was never stored.
        log.warning("pre_auth_key.expire_failed", key_id=key.id, expires_at=key.expires_at, error=str(error))
    else:
        log.info("pre_auth_key.expired", key_id=key.id, reason="it could not be written")
