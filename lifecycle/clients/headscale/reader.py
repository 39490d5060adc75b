"""Read from a Headscale server, with retries."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import tenacity

from lifecycle.domain.model import Node, PreAuthKey, User

if TYPE_CHECKING:
    # At run time, a command imports only the class that it uses, because imports take time.
    from lifecycle.clients.headscale.exec import ExecTransport
    from lifecycle.clients.headscale.http import HttpTransport

# Both transports have the same methods. These methods send requests, and do not retry them.
HeadscaleTransport: TypeAlias = "HttpTransport | ExecTransport"


class HeadscaleReader:
    """Reads from a Headscale server.

    Args:
        retrying: the policy for every request that is safe to send twice.
    """

    def __init__(self, transport: HeadscaleTransport, retrying: tenacity.Retrying) -> None:
        self._transport = transport
        self._retrying = retrying

    def server_time(self, now: datetime) -> datetime:
        """Return the server's time, by which keys and nodes expire; `now` if the server's time is unknown."""
        return now + (self._transport.clock_skew() or timedelta())

    def version(self) -> str:
        """Return the server's version, or a range such as "0.26 or 0.27" if its exact version is unknown."""
        return self._retrying(self._transport.version)

    def detect_version(self) -> None:
        """Detect the version for later calls, or raise an ApiError. Not retried, because later calls try again."""
        self._transport.version()

    def users(self) -> list[User]:
        """Return every user, in no particular order."""
        return self._retrying(self._transport.users)

    def nodes(self) -> list[Node]:
        """Return every node of the VPN, offline and expired nodes included, in no particular order."""
        return self._retrying(self._transport.nodes)

    def node(self, node_id: str) -> Node:
        """Return one node. A NotFoundError means that Headscale itself reports that the node does not exist."""
        return self._retrying(self._transport.node, node_id)

    def api_key_expires_at(self) -> datetime | None:
        """Return when the API key in use expires; None = never, or unknown. Not retried."""
        return self._transport.api_key_expires_at()

    def pre_auth_keys(self, user: User) -> list[PreAuthKey]:
        """Return the user's keys, used and expired keys included."""
        return self._retrying(self._pre_auth_keys, user)

    def _pre_auth_keys(self, user: User) -> list[PreAuthKey]:
        # Up to 0.25, the response contains only the keys of the requested user, and the keys have no id of the user. So
        # a key whose user has no id is included. The user's name is not compared, because it can be an e-mail address.
        return [
            key
            for key in self._transport.pre_auth_keys(user)
            if key.user is not None and (key.user.id is None or key.user.is_same(user))
        ]


class HeadscaleSnapshot(HeadscaleReader):
    """Reads the users and the nodes only once. These lists are expensive, and every plan of a dry run needs them."""

    def __init__(self, transport: HeadscaleTransport, retrying: tenacity.Retrying) -> None:
        super().__init__(transport, retrying)
        self._users, self._nodes = cache(super().users), cache(super().nodes)

    def users(self) -> list[User]:
        """Return every user, as first read."""
        return self._users()

    def nodes(self) -> list[Node]:
        """Return every node of the VPN, as first read."""
        return self._nodes()
