"""Read from a Headscale server, with retries."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

import tenacity

from lifecycle.domain.model import Node, PreAuthKey, User

if TYPE_CHECKING:
    # At run time, these classes are not imported here: imports take time, and most pods need only one class.
    from lifecycle.clients.headscale.exec import ExecTransport
    from lifecycle.clients.headscale.http import HttpTransport

# Both transports have the same methods. These methods send requests, and do not retry them.
HeadscaleTransport: TypeAlias = "HttpTransport | ExecTransport"


class HeadscaleReader:
    """A Headscale server.

    Args:
        transport: sends the requests.
        retrying: the policy for every request that is safe to send twice.
    """

    def __init__(self, transport: HeadscaleTransport, retrying: tenacity.Retrying) -> None:
        self._transport = transport
        self._retrying = retrying

    def server_time(self, now: datetime) -> datetime:
        """Return the time by the server's clock, which decides when keys and nodes expire; `now` if it is unknown."""
        return now + (self._transport.clock_skew() or timedelta())

    def version(self) -> str:
        """Return the version that the server reports, or a range of releases such as "0.26 or 0.27"."""
        return self._retrying(self._transport.version)

    def detect_version(self) -> None:
        """Detect the version for later calls. A failure is not retried, because later calls repeat the detection."""
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
        """Return when the API key in use expires; None for never or unknown. A failure is not retried."""
        return self._transport.api_key_expires_at()

    def pre_auth_keys(self, user: User) -> list[PreAuthKey]:
        """Return the user's keys, used and expired keys included."""
        keys = self._retrying(self._transport.pre_auth_keys, user)
        return [key for key in keys if is_key_of(key, user)]


class HeadscaleSnapshot(HeadscaleReader):
    """A Headscale server whose lists are read only once: they are expensive, and every plan of a dry run needs them."""

    def __init__(self, transport: HeadscaleTransport, retrying: tenacity.Retrying) -> None:
        super().__init__(transport, retrying)
        self._users, self._nodes = cache(super().users), cache(super().nodes)

    def users(self) -> list[User]:
        """Return every user, as first read."""
        return self._users()

    def nodes(self) -> list[Node]:
        """Return every node of the VPN, as first read."""
        return self._nodes()


def is_key_of(key: PreAuthKey, user: User) -> bool:
    """Return True if a listed key belongs to the user.

    Up to 0.25, a list contains only the keys of the requested user. Its items have no id of the user, and an e-mail
    address can be in place of the user's name. So a key whose user has no id is accepted.
    """
    return key.user is not None and (key.user.id is None or key.user.is_same(user))
