"""Remove what services left: nodes first, one after another, then each service's records."""

from __future__ import annotations

from collections.abc import Iterable

import structlog

from lifecycle.clients.cloudflare import Cloudflare
from lifecycle.clients.headscale.client import Headscale
from lifecycle.model import Node, User
from lifecycle.ownership import NodeIdentity
from lifecycle.prune.plan import PruneService

log = structlog.get_logger()


def apply(
    services: Iterable[PruneService],
    *,
    headscale: Headscale,
    cloudflare: Cloudflare,
    user: User,
    tags: frozenset[str],
    even_online: bool,
) -> None:
    """Remove the services one after another; the first failure ends it, and the next run goes on from there.

    Args:
        even_online: a node that came back since it was planned for is deleted too.

    Raises:
        ApiError: a deletion could not be confirmed; those before it stand.
    """
    for service in services:
        for node in service.nodes:
            identity = NodeIdentity(node.hostname, user, tags)

            def still_ours(now: Node, identity: NodeIdentity = identity) -> bool:
                return identity.owns_node(now) and (even_online or not now.online)

            headscale.delete_node(node, still_ours=still_ours)
            log.info("node.deleted", node_id=node.id, hostname=node.hostname, reason=service.reason)
        cloudflare.change(deletes=service.records)
        for record in service.records:
            log.info("record.deleted", record=record.name, type=record.type, was=record.content, reason=service.reason)
