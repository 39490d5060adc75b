"""Make the records what they should be: one transaction, one log line a change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import structlog

from lifecycle.clients.cloudflare import Cloudflare
from lifecycle.dns_watch.plan import Change, CreateRecord, DeleteRecord, UpdateRecord

log = structlog.get_logger()


def apply(changes: Sequence[Change], cloudflare: Cloudflare) -> None:
    """Make all changes or none.

    Raises:
        ApiError: it could not be confirmed that they were made; the next look will tell.
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
