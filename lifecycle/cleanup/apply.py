"""Make the changes of a clean-up: one client call and one log line each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import structlog

from lifecycle.cleanup.plan import DeleteNode, DeleteRecord
from lifecycle.clients.cloudflare import Cloudflare
from lifecycle.clients.headscale.client import Headscale
from lifecycle.ownership import NodeIdentity

log = structlog.get_logger()


def delete_nodes(changes: Iterable[DeleteNode], headscale: Headscale, *, identity: NodeIdentity) -> None:
    """Delete the nodes one after another; the first failure ends it.

    Raises:
        ApiError: a deletion could not be confirmed; those before it stand.
    """
    for change in changes:
        node = change.node
        if node.online:
            # Headscale may call a node online for a quarter of an hour after its pod died.
            log.warning("node.online", node_id=node.id, hostname=node.hostname, reason=change.reason)
        headscale.delete_node(node, still_ours=identity.owns_node)
        log.info("node.deleted", node_id=node.id, hostname=node.hostname, reason=change.reason)


def delete_records(changes: Sequence[DeleteRecord], cloudflare: Cloudflare) -> None:
    """Delete the records, all or none.

    Raises:
        ApiError: it could not be confirmed that they are gone.
    """
    cloudflare.change(deletes=[change.record for change in changes])
    for change in changes:
        record = change.record
        log.info("record.deleted", record=record.name, type=record.type, was=record.content, reason=change.reason)
