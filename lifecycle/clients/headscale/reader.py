"""Read from a Headscale server, with retries."""

from __future__ import annotations

from datetime import datetime

import tenacity

from lifecycle.clients.headscale.transport import ReadTransport
from lifecycle.domain.model import Node, PreAuthKey, User


class HeadscaleReader:
    """One Headscale server.

    Args:
        transport: the way to it.
        retrying: the policy for all that may be sent twice.
    """

    def __init__(self, transport: ReadTransport, retrying: tenacity.Retrying) -> None:
        self._transport = transport
        self._retrying = retrying

    def version(self) -> str:
        """The server's version, as it says it, or the range that its API belongs to."""
        return self._retrying(self._transport.version)

    def users(self) -> list[User]:
        """Every user, in no particular order."""
        return self._retrying(self._transport.users)

    def nodes(self) -> list[Node]:
        """Every node of the tailnet, offline and expired ones included, in no particular order."""
        return self._retrying(self._transport.nodes)

    def node(self, node_id: str) -> Node:
        """One node.

        Raises:
            NotFoundError: Headscale itself says that there is none.
        """
        return self._retrying(self._transport.node, node_id)

    def api_key_expires_at(self) -> datetime | None:
        """When the API key that is used here expires; asked once, since nothing hangs on it.

        Returns:
            None = never, or there is none, or it cannot be told.
        """
        return self._transport.api_key_expires_at()

    def pre_auth_keys(self, user: User) -> list[PreAuthKey]:
        """The user's keys, used and expired ones included."""
        keys = self._retrying(self._transport.pre_auth_keys, user)
        return [key for key in keys if is_users(key, user)]


def is_users(key: PreAuthKey, user: User) -> bool:
    """Whether a listed key is the user's.

    Up to 0.25 a list is one user's, and calls that user by a name without an id, or by the email.
    """
    return key.user is not None and (key.user.id is None or key.user.is_same(user))
