"""Warn before Headscale's API key or this pod's node expires."""

from __future__ import annotations

from datetime import datetime, timedelta

from lifecycle.domain.events import Event, warning
from lifecycle.domain.model import Node

WARN_BEFORE = timedelta(days=14)


def expires_soon(expires_at: datetime | None, now: datetime) -> bool:
    """Return True if the key or node expires within two weeks, or has already expired."""
    return expires_at is not None and expires_at - now <= WARN_BEFORE


def api_key_warning(expires_at: datetime | None, now: datetime) -> Event | None:
    """Return a warning if the API key expires soon, else None."""
    if expires_at is None or not expires_soon(expires_at, now):
        return None
    return warning(
        "api_key.expiring",
        expires_at=expires_at,
        days_left=_days_left(expires_at, now),
        advice="Create a new key with `headscale apikeys create --expiration 90d`, store it in the Secret or file that "
        "HEADSCALE_API_KEY is read from, and expire the old key.",
    )


def node_warning(node: Node, now: datetime) -> Event | None:
    """Return a warning if the node expires soon, else None."""
    if node.expires_at is None or not expires_soon(node.expires_at, now):
        return None
    return warning(
        "node.expiring",
        node_id=node.id,
        expires_at=node.expires_at,
        days_left=_days_left(node.expires_at, now),
        advice="Delete the pod before the node expires (with NODE_POLICY=keep, delete the node in Headscale first). Or "
        "set SELF_HEAL=true, so that the pod registers again after its node has expired. `node.expiry` in Headscale's "
        "configuration sets the lifetime of nodes.",
    )


def _days_left(expires_at: datetime, now: datetime) -> int:
    return max((expires_at - now).days, 0)
