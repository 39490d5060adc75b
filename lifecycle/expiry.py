"""Say in good time that the API key or this pod's node is about to expire."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from time import monotonic as system_monotonic

import structlog

from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.domain.errors import ApiError
from lifecycle.domain.model import Node
from lifecycle.runtime.retry import jittered

log = structlog.get_logger()

WARN_BEFORE = timedelta(days=14)

_DAY_S = 86_400.0
# How soon the list of API keys is read again when it could not be, or when a new key should soon be in place.
_HOUR_S = 3600.0


class ExpiryWatch:
    """Looks once a day, or once an hour when it is near, and says at most once a day what it found.

    Args:
        now: gives aware UTC.
        monotonic: seconds that never go back.

    Attributes:
        api_key_expires_at: None = never, or it is not known.
    """

    def __init__(
        self,
        headscale: HeadscaleReader,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float] = system_monotonic,
    ) -> None:
        self._headscale = headscale
        self._now = now
        self._monotonic = monotonic
        self._look_at = monotonic()
        self._say_at: dict[str, float] = {}
        self.api_key_expires_at: datetime | None = None

    def look_at_api_key(self) -> None:
        """Find out, when that is due, when our API key expires; that it cannot be found out is no failure."""
        now = self._monotonic()
        if now >= self._look_at:
            try:
                self.api_key_expires_at = self._headscale.api_key_expires_at()
            except ApiError as error:
                log.debug("api_key.unreadable", error=str(error))
            else:
                self._look_at = now + jittered(_HOUR_S if self._is_near(self.api_key_expires_at) else _DAY_S)
        if now >= self._look_at:
            self._look_at = now + jittered(_HOUR_S)
        expires_at = self.api_key_expires_at
        if expires_at is not None and self._is_to_be_said("api_key", expires_at):
            log.warning(
                "api_key.expiring",
                expires_at=expires_at,
                days_left=self._days_to(expires_at),
                advice="make a new one with `headscale apikeys create --expiration 90d`, put it where "
                "HEADSCALE_API_KEY comes from, and expire this one",
            )

    def look_at_node(self, node: Node) -> None:
        """Say it when our node will have to log in again soon."""
        if node.expires_at is not None and self._is_to_be_said("node", node.expires_at):
            log.warning(
                "node.expiring",
                node_id=node.id,
                expires_at=node.expires_at,
                days_left=self._days_to(node.expires_at),
                advice="delete the pod before that (with NODE_POLICY=keep, the node in Headscale first), or let "
                "SELF_HEAL=true bring it back when it has expired; `node.expiry` in Headscale's configuration sets how "
                "long a node may stay",
            )

    def _is_to_be_said(self, what: str, expires_at: datetime) -> bool:
        now = self._monotonic()
        if not self._is_near(expires_at) or now < self._say_at.get(what, now):
            return False
        self._say_at[what] = now + _DAY_S
        return True

    def _is_near(self, expires_at: datetime | None) -> bool:
        return expires_at is not None and expires_at - self._now() <= WARN_BEFORE

    def _days_to(self, expires_at: datetime) -> int:
        return max((expires_at - self._now()).days, 0)
