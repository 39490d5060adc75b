"""What can be asked of a Headscale server, whichever way it is reached."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from lifecycle.domain.model import Node, PreAuthKey, User


class ReadTransport(Protocol):
    """One question, one answer: no second try, no check, no order between them."""

    def version(self) -> str:
        """The server's version, as it says it, or the range that its API belongs to."""

    def users(self) -> list[User]:
        """Every user, in no particular order."""

    def nodes(self) -> list[Node]:
        """Every node of the tailnet, offline and expired ones included, in no particular order."""

    def node(self, node_id: str) -> Node:
        """One node.

        Raises:
            NotFoundError: Headscale itself says that there is none.
        """

    def matches_request(self, key: PreAuthKey, expires_at: datetime) -> bool:
        """Whether a listed key may be the one that was asked for last, by its life alone."""

    def pre_auth_keys(self, user: User) -> list[PreAuthKey]:
        """The user's keys, used and expired ones included; newer versions give everybody's."""

    def api_key_expires_at(self) -> datetime | None:
        """When the API key that is used here expires; None = never, or there is none, or it cannot be told."""


class Transport(ReadTransport, Protocol):
    """A transport that can also change the server; one request per call, without retries or checks."""

    def delete_node(self, node_id: str) -> None:
        """Remove the node's row.

        Raises:
            NotFoundError: it was gone already.
        """

    def create_pre_auth_key(
        self, user: User, *, expires_at: datetime, reusable: bool, ephemeral: bool, tags: frozenset[str]
    ) -> PreAuthKey:
        """Make a key, its secret included; a lost answer may hide a success."""

    def expire_pre_auth_key(self, key: PreAuthKey, user: User) -> None:
        """Make a key useless from now on; its row stays.

        Raises:
            NotFoundError: there is no such key.
            ConflictError: it was of no use before.
        """
