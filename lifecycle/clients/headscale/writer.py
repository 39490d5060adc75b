"""Delete nodes, and create and expire pre-auth keys, even if responses are lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from http import HTTPStatus

import structlog
import tenacity

from lifecycle.clients.headscale.errors import UPSTREAM
from lifecycle.clients.headscale.reader import HeadscaleReader, HeadscaleTransport
from lifecycle.domain.errors import ApiError, ConflictError, NotFoundError, ResponseError, TransientError
from lifecycle.domain.model import KeySpec, Node, PreAuthKey, User

log = structlog.get_logger()

# Up to this duration, chosen at random, is added to the lifetime of a key. Keys of pods that start together then have
# different expiries, by which a key whose response was lost can be found.
_MAX_SPREAD = timedelta(minutes=1)

# How much longer than requested a created key may be valid, because the clocks of two machines differ.
_LIFETIME_TOLERANCE = timedelta(minutes=5)


class HeadscaleWriter(HeadscaleReader):
    """A Headscale server that may be changed. Only `lifecycle.apply` calls the methods defined here."""

    def __init__(self, transport: HeadscaleTransport, retrying: tenacity.Retrying) -> None:
        super().__init__(transport, retrying)
        # The specification and the expiry of a key that may exist, because the response to its creation was lost.
        self._unconfirmed: tuple[KeySpec, datetime] | None = None

    def delete_node(self, node: Node, *, is_still_owned: Callable[[Node], bool]) -> None:
        """Read a node again, and delete it if this program still owns it. A missing node counts as deleted.

        Args:
            node: the node as it was when its deletion was planned.
            is_still_owned: called with the node as it is now; returns True if this program still owns the node.

        Raises:
            ConflictError: the id belongs to another machine now, or the node is no longer ours.
            ApiError: it is unknown whether the node was deleted.
        """

        def attempt() -> None:
            # The node is also read again before each retry, because the wait before a retry can be long.
            current = self._transport.node(node.id)
            is_same_machine = current.machine_key == node.machine_key
            if not is_same_machine or not is_still_owned(current):
                raise ConflictError(
                    f"Node {node.id} is {'no longer ours' if is_same_machine else 'another machine now'}. It was not "
                    "deleted; the next pass reads the nodes again.",
                    upstream=UPSTREAM,
                )
            self._transport.delete_node(node.id)

        # If another client has deleted the node in the meantime, nothing is left to do.
        with suppress(NotFoundError):
            self._retrying(attempt)

    def create_pre_auth_key(self, spec: KeySpec, *, now: Callable[[], datetime]) -> PreAuthKey:
        """Create a key that is valid from now on.

        If the response is lost, the key may exist. A retry or a later call then searches Headscale's keys for this key
        and expires it before it creates another one.

        Args:
            now: returns the time by the clock of this machine, as a timezone-aware datetime in UTC.

        Raises:
            ResponseError: no usable key was created. A key without a secret or with a wrong lifetime was expired if
                possible.
        """
        spread = random.random() * _MAX_SPREAD  # noqa: S311 - not a secret

        def attempt() -> PreAuthKey:
            if self._unconfirmed is not None:
                self._expire_lost(*self._unconfirmed)
                self._unconfirmed = None
            expires_at = self.server_time(now()) + spec.lifetime + spread
            try:
                return self._transport.create_pre_auth_key(spec, expires_at)
            except (TransientError, ResponseError) as error:
                if not _is_without_effect(error):
                    self._unconfirmed = (spec, expires_at)
                raise

        try:
            key = self._retrying(attempt)
        except (TransientError, ResponseError):
            if self._unconfirmed is not None:
                _, expires_at = self._unconfirmed
                log.warning("pre_auth_key.create_unconfirmed", user=spec.user.label, expires_at=expires_at)
            raise
        if key.known_secret is None:
            self.discard_pre_auth_key(key, spec.user, reason="its secret is unknown")
            raise ResponseError("Headscale created a pre-auth key, but returned no secret.", upstream=UPSTREAM)
        if not _has_requested_lifetime(key, spec.lifetime):
            self.discard_pre_auth_key(key, spec.user, reason="its lifetime differs from the requested one")
            raise ResponseError(
                f"Headscale created pre-auth key {key.id} with another lifetime than requested: it expires at "
                f"{key.expires_at}. Synchronize the clocks of this machine and of Headscale.",
                upstream=UPSTREAM,
            )
        return key

    def expire_pre_auth_key(self, key: PreAuthKey, user: User) -> None:
        """Expire a key. A key that is missing, used or expired counts as expired."""
        with suppress(NotFoundError, ConflictError):
            self._retrying(self._transport.expire_pre_auth_key, key, user)

    def discard_pre_auth_key(self, key: PreAuthKey, user: User, *, reason: str) -> None:
        """Expire a key that no pod will use. A failure is only logged, because the key expires by itself later."""
        try:
            self.expire_pre_auth_key(key, user)
        except ApiError as error:
            log.warning("pre_auth_key.expire_failed", key_id=key.id, expires_at=key.expires_at, error=str(error))
        else:
            log.info("pre_auth_key.expired", key_id=key.id, reason=reason)

    def _expire_lost(self, spec: KeySpec, expires_at: datetime) -> None:
        """Expire the key whose response was lost. If several keys match the request, no key is expired."""
        matching = [
            key
            for key in self._pre_auth_keys(spec.user)
            if self._transport.matches_request(key, expires_at)
            and not key.used
            and (key.reusable, key.ephemeral, key.tags) == (spec.reusable, spec.ephemeral, spec.tags)
        ]
        if len(matching) == 1:
            (key,) = matching
            reason = "the response with its secret was lost"
            try:
                self._transport.expire_pre_auth_key(key, spec.user)
            except (NotFoundError, ConflictError) as error:
                reason += f"; {error}"
            except ResponseError as error:
                # The key stays valid until its expiry, but its secret is unknown, so no node can use it.
                log.warning("pre_auth_key.expire_failed", key_id=key.id, expires_at=key.expires_at, error=str(error))
                return
            log.info("pre_auth_key.expired", key_id=key.id, reason=reason)
        elif matching:
            log.warning("pre_auth_key.create_unconfirmed", user=spec.user.label, expires_at=expires_at)


def _is_without_effect(error: TransientError | ResponseError) -> bool:
    """Return True if the server did not execute a request, because it refused it or did not receive it."""
    if isinstance(error, TransientError):
        return error.throttled or not error.was_sent
    return error.status is not None and error.status >= HTTPStatus.BAD_REQUEST


def _has_requested_lifetime(key: PreAuthKey, lifetime: timedelta) -> bool:
    """Return True if the time between the creation and the expiry of a key is about the requested lifetime."""
    if key.expires_at is None:
        return False
    if key.created_at is None:
        return True
    actual = key.expires_at - key.created_at
    # At least half of the requested lifetime is accepted, because such a key is still usable.
    return lifetime / 2 <= actual <= lifetime + _MAX_SPREAD + _LIFETIME_TOLERANCE
