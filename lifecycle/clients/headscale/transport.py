"""The requests that a Headscale server accepts, over HTTP and through its command line."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol

from lifecycle.domain.model import Node, PreAuthKey, User


class ReadTransport(Protocol):
    """Reads from the server; one request per call, without retries or checks."""

    def clock_skew(self) -> timedelta | None:
        """Return how far the server's clock was ahead of ours at its last response; None if unknown."""

    def version(self) -> str:
        """Return the server's version as it reports it, or the range of releases that its API belongs to."""

    def users(self) -> list[User]:
        """Return every user, in no particular order."""

    def nodes(self) -> list[Node]:
        """Return every node of the tailnet, offline and expired ones included, in no particular order."""

    def node(self, node_id: str) -> Node:
        """Return one node.

        Raises:
            NotFoundError: Headscale itself reports that it does not exist.
        """

    def matches_request(self, key: PreAuthKey, expires_at: datetime) -> bool:
        """Return True if a listed key can be the last requested one, by its life alone."""

    def pre_auth_keys(self, user: User) -> list[PreAuthKey]:
        """Return the user's keys, used and expired ones included. From 0.28 on, return those of all users."""

    def api_key_expires_at(self) -> datetime | None:
        """Return when the API key in use expires; None if never, unknown, or without a key."""


class Transport(ReadTransport, Protocol):
    """A transport that can also change the server; one request per call, without retries or checks."""

    def delete_node(self, node_id: str) -> None:
        """Delete a node.

        Raises:
            NotFoundError: it did not exist.
        """

    def create_pre_auth_key(
        self, user: User, *, expires_at: datetime, reusable: bool, ephemeral: bool, tags: frozenset[str]
    ) -> PreAuthKey:
        """Create a key, and return it with its secret. If the response is lost, the key can exist all the same."""

    def expire_pre_auth_key(self, key: PreAuthKey, user: User) -> None:
        """Expire a key, which stays in the database.

        Raises:
            NotFoundError: it does not exist.
            ConflictError: it was used or expired before.
        """
