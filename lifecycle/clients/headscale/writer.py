"""Change a Headscale server: deletions are re-read and confirmed, lost responses followed up."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

import structlog
import tenacity

from lifecycle.clients.headscale.errors import UPSTREAM
from lifecycle.clients.headscale.reader import HeadscaleReader, is_users
from lifecycle.clients.headscale.transport import Transport
from lifecycle.domain.errors import ConflictError, NotFoundError, ResponseError, TransientError
from lifecycle.domain.model import KeySpec, Node, PreAuthKey, User

log = structlog.get_logger()

# Added to a key's life, in whole seconds: two pods that start at once ask for
# keys that can be told apart when an answer is lost.
_LIFE_SPREAD_S = 60


class HeadscaleWriter(HeadscaleReader):
    """A Headscale server that may be changed. Only `lifecycle.apply` calls the methods defined here.

    Args:
        transport: sends the requests.
        retrying: the policy for every request that is safe to send twice.
    """

    def __init__(self, transport: Transport, retrying: tenacity.Retrying) -> None:
        super().__init__(transport, retrying)
        self._writes = transport
        # The last key that was requested; it may exist although its response was lost.
        self._unconfirmed: tuple[KeySpec, datetime] | None = None

    def delete_node(self, node: Node, *, still_ours: Callable[[Node], bool]) -> None:
        """Remove a node, if it still is the one that was planned for; gone already counts as done.

        Args:
            node: as it was planned for.
            still_ours: asked with the node as it is now.

        Raises:
            ConflictError: under this id there is another node by now, or it is no longer ours.
            ResponseError: it is still there after it was deleted.
        """
        if self._gone(node.id, expected=node, still_ours=still_ours):
            return
        try:
            self._retrying(self._writes.delete_node, node.id)
        except NotFoundError:
            return
        # Confirmed by looking: not every version says whether it worked.
        if not self._gone(node.id):
            raise ResponseError(f"Headscale still has node {node.id} after it was deleted", upstream=UPSTREAM)

    def _gone(
        self, node_id: str, *, expected: Node | None = None, still_ours: Callable[[Node], bool] | None = None
    ) -> bool:
        try:
            now = self.node(node_id)
        except NotFoundError:
            return True
        if expected is not None and now.machine_key != expected.machine_key:
            raise ConflictError(
                f"node {node_id} is another machine by now; nothing was deleted, the next try plans anew",
                upstream=UPSTREAM,
            )
        if still_ours is not None and not still_ours(now):
            raise ConflictError(
                f"node {node_id} is no longer ours; it was not deleted, the next try plans anew", upstream=UPSTREAM
            )
        return False

    def create_pre_auth_key(self, spec: KeySpec, *, now: datetime) -> PreAuthKey:
        """Make a key that is good from now on.

        An answer that was lost may hide a key: it is looked for and expired before another is made, in this
        call or a later one.

        Args:
            spec: what it should be.
            now: aware UTC.

        Raises:
            ResponseError: the key would be of no use.
        """
        spread = timedelta(seconds=random.randrange(_LIFE_SPREAD_S))  # noqa: S311 - no secret
        expires_at = now.replace(microsecond=0) + spec.life + spread

        def attempt() -> PreAuthKey:
            if self._unconfirmed is not None:
                self._expire_lost(*self._unconfirmed)
                self._unconfirmed = None
            try:
                return self._writes.create_pre_auth_key(
                    spec.user,
                    expires_at=expires_at,
                    reusable=spec.reusable,
                    ephemeral=spec.ephemeral,
                    tags=spec.tags,
                )
            except (TransientError, ResponseError) as error:
                if _may_have_worked(error):
                    self._unconfirmed = (spec, expires_at)
                raise

        try:
            key = self._retrying(attempt)
        except (TransientError, ResponseError):
            if self._unconfirmed is not None:
                log.warning("pre_auth_key.create_unconfirmed", user=spec.user.name, expires_at=expires_at)
            raise
        if key.key is None:
            raise ResponseError("Headscale made a pre-auth key and did not show it", upstream=UPSTREAM)
        if key.expires_at is None or (key.created_at is not None and key.expires_at <= key.created_at):
            raise ResponseError(
                f"Headscale made a pre-auth key (id {key.id}) that has expired already; "
                "do its clock and this machine's agree?",
                upstream=UPSTREAM,
            )
        return key

    def expire_pre_auth_key(self, key: PreAuthKey, user: User) -> None:
        """Make a key useless from now on; one that is gone, used or expired counts as done."""
        with suppress(NotFoundError, ConflictError):
            self._retrying(self._writes.expire_pre_auth_key, key, user)

    def _expire_lost(self, spec: KeySpec, expires_at: datetime) -> None:
        """Expire the key that a lost answer may have hidden; of several it cannot be told which it is."""
        keys = self._transport.pre_auth_keys(spec.user)
        hidden = [
            key
            for key in keys
            if is_users(key, spec.user)
            and self._transport.matches_request(key, expires_at)
            and not key.used
            and (key.reusable, key.ephemeral, key.tags) == (spec.reusable, spec.ephemeral, spec.tags)
        ]
        if len(hidden) == 1:
            (key,) = hidden
            try:
                self._writes.expire_pre_auth_key(key, spec.user)
            except (NotFoundError, ConflictError) as error:
                log.info("pre_auth_key.expired", key_id=key.id, reason=f"the answer that named it was lost; {error}")
            except ResponseError as error:
                # It expires by itself, and nobody knows it.
                log.warning("pre_auth_key.expire_failed", key_id=key.id, expires_at=key.expires_at, error=str(error))
            else:
                log.info("pre_auth_key.expired", key_id=key.id, reason="the answer that named it was lost")
        elif hidden:
            log.warning("pre_auth_key.create_unconfirmed", user=spec.user.name, expires_at=expires_at)


def _may_have_worked(error: TransientError | ResponseError) -> bool:
    """Whether a request that ended so may have been carried out: it was not refused, its answer was lost or odd."""
    return not error.throttled if isinstance(error, TransientError) else error.status is None
