"""Read from a Headscale server, with retries."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import tenacity

from lifecycle.domain.model import Node, PreAuthKey, User

if TYPE_CHECKING:
    # At run time, most pods import only one of them: `scripts/bench` shows the cost of the other.
    from lifecycle.clients.headscale.exec import ExecTransport
    from lifecycle.clients.headscale.http import HttpTransport

# Both have the same methods: one request per call, without retries or checks.
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
        """Return the time by the server's clock, which expiry is compared with; ours until its first response."""
        return now + (self._transport.clock_skew() or timedelta())

    def version(self) -> str:
        """Return the server's version as it reports it, or the range of releases that its API belongs to."""
        return self._retrying(self._transport.version)

    def detect_version(self) -> None:
        """Detect the version for later calls. Not retried, since each of them detects it if this fails."""
        self._transport.version()

    def users(self) -> list[User]:
        """Return every user, in no particular order."""
        return self._retrying(self._transport.users)

    def nodes(self) -> list[Node]:
        """Return every node of the tailnet, offline and expired ones included, in no particular order."""
        return self._retrying(self._transport.nodes)

    def node(self, node_id: str) -> Node:
        """Return one node.

        Raises:
            NotFoundError: Headscale itself reports that it does not exist.
        """
        return self._retrying(self._transport.node, node_id)

    def api_key_expires_at(self) -> datetime | None:
        """Return when the API key in use expires; None if never, unknown, or without a key. Not retried."""
        return self._transport.api_key_expires_at()

    def pre_auth_keys(self, user: User) -> list[PreAuthKey]:
        """Return the user's keys, used and expired ones included."""
        keys = self._retrying(self._transport.pre_auth_keys, user)
        return [key for key in keys if is_users(key, user)]


class HeadscaleSnapshot(HeadscaleReader):
    """A Headscale server whose lists are read once, for a dry run: each is expensive, and all plans need the same."""

    @cached_property
    def _users(self) -> list[User]:
        return super().users()

    @cached_property
    def _nodes(self) -> list[Node]:
        return super().nodes()

    def users(self) -> list[User]:
        """Return every user, as first read."""
        return self._users

    def nodes(self) -> list[Node]:
        """Return every node of the tailnet, as first read."""
        return self._nodes


def is_users(key: PreAuthKey, user: User) -> bool:
    """Return True if a listed key is the user's.

    Up to 0.25 a list has one user's keys only, and names that user by a name without id, or by the e-mail address.
    """
    return key.user is not None and (key.user.id is None or key.user.is_same(user))
