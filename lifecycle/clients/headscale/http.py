"""Headscale over its REST API, in the dialect of the server that answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any, TypeVar

from lifecycle.clients.headscale import parsing
from lifecycle.clients.headscale.dialect import Dialect, dialect_of_openapi, dialect_of_swagger, dialect_of_version
from lifecycle.clients.headscale.errors import malformed_response
from lifecycle.clients.json_client import JsonClient
from lifecycle.domain.errors import ApiError, NotFoundError, ResponseError, TransientError
from lifecycle.domain.model import Node, PreAuthKey, User

Parsed = TypeVar("Parsed")

_NODE_PATH_ID = re.compile(r"[1-9][0-9]*")

# A server of another version than we think answers our request with one of these.
_MISUNDERSTOOD = frozenset({400, 404, 405, 415, 422})
# None = the connection was lost, as when a server is replaced.
_MAY_BE_ANOTHER = frozenset({None, 500})

# Where a version may be read without a key, in the order to ask; each exists on some versions only.
_FINGERPRINTS: tuple[tuple[str, Callable[[Any], Dialect | None]], ...] = (
    ("/version", lambda answer: dialect_of_version(answer.get("version"))),
    ("/swagger/v1/openapiv2.json", dialect_of_swagger),
    ("/api/v1/openapi.json", dialect_of_openapi),
)
_NOT_HERE = frozenset({401, 404})

# No user's name on any version, and no number.
_NOBODY = "~"
_BAD_REQUEST = 400


class HttpTransport:
    """A Headscale server by its address and API key; one request an answer."""

    def __init__(self, client: JsonClient) -> None:
        self._client = client
        self._dialect: Dialect | None = None

    def version(self) -> str:
        """The server's version, as it says it, or the range that its API belongs to."""
        return self._current_dialect().version

    def users(self) -> list[User]:
        """Every user. Source: GET /api/v1/user."""
        return self._list("/api/v1/user", "users", parsing.parse_listed_user)

    def nodes(self) -> list[Node]:
        """Every node. Source: GET /api/v1/node, which knows no pages in any version."""
        return self._list("/api/v1/node", "nodes", parsing.parse_node, members=parsing.NODE_MEMBERS)

    def node(self, node_id: str) -> Node:
        """One node. Source: GET /api/v1/node/{id}."""
        return self._one("GET", _node_path(node_id), "node", parsing.parse_node)

    def delete_node(self, node_id: str) -> None:
        """Remove the node's row. Source: DELETE /api/v1/node/{id}."""
        self._send("DELETE", _node_path(node_id))

    def create_pre_auth_key(
        self, user: User, *, expires_at: datetime, reusable: bool, ephemeral: bool, tags: frozenset[str]
    ) -> PreAuthKey:
        """Make a key. Source: POST /api/v1/preauthkey.

        An expiration is always sent: without one, every version makes a key that has expired already.
        """

        def create(dialect: Dialect) -> PreAuthKey:
            body = {
                "user": dialect.user_reference(user),
                "reusable": reusable,
                "ephemeral": ephemeral,
                "expiration": expires_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "aclTags": sorted(tags),
            }
            return self._one("POST", "/api/v1/preauthkey", "preAuthKey", parsing.parse_pre_auth_key, body=body)

        return self._in_dialect(create)

    def matches_request(self, key: PreAuthKey, expires_at: datetime) -> bool:
        """Whether a listed key expires when the one that was asked for last was to."""
        return key.expires_at == expires_at

    def pre_auth_keys(self, user: User) -> list[PreAuthKey]:
        """The user's keys, or everybody's. Source: GET /api/v1/preauthkey."""

        def list_keys(dialect: Dialect) -> list[PreAuthKey]:
            params = {"user": dialect.user_reference(user)} if dialect.keys_by_user else None
            return self._list("/api/v1/preauthkey", "preAuthKeys", parsing.parse_pre_auth_key, params=params)

        return self._in_dialect(list_keys)

    def api_key_expires_at(self) -> datetime | None:
        """When our API key expires, which is read anew before. Source: GET /api/v1/apikey: how each key begins."""
        # Another one may be in place already, long before this one is refused.
        self._client.reload_token()
        keys = self._list("/api/v1/apikey", "apiKeys", parsing.parse_api_key)
        ours = [key for key in keys if self._client.token_starts_with(key.prefix)]
        return ours[0].expires_at if len(ours) == 1 else None

    def expire_pre_auth_key(self, key: PreAuthKey, user: User) -> None:
        """Make a key useless from now on. Source: POST /api/v1/preauthkey/expire."""

        def expire(dialect: Dialect) -> None:
            if dialect.key_expire_by_id:
                body = {"id": key.id}
            else:
                secret = key.key.get_secret_value() if key.key else ""
                body = {"user": dialect.user_reference(user), "key": secret}
            self._send("POST", "/api/v1/preauthkey/expire", body=body)

        # 0.28 and 0.29 answer 200 to the older form and expire nothing: no refusal would
        # tell that the server was upgraded since its version was read.
        self._dialect = None
        self._in_dialect(expire)

    def _in_dialect(self, operation: Callable[[Dialect], Parsed]) -> Parsed:
        """Run a request whose form differs by version; once more when the server's version changed."""
        dialect = self._current_dialect()
        try:
            return operation(dialect)
        except NotFoundError:
            # What 0.23 to 0.27 say to a list of keys that names no user: the version was told wrong.
            self._dialect = None
            if self._current_dialect() == dialect:
                raise
        except ResponseError as error:
            if error.status not in _MISUNDERSTOOD or self._current_dialect() == dialect:
                raise
        # A request that was not understood had no effect.
        return operation(self._current_dialect())

    def _current_dialect(self) -> Dialect:
        if self._dialect is None:
            self._dialect = self._detect()
        return self._dialect

    def _detect(self) -> Dialect:
        """Find the server's dialect by what it serves without a key; where a proxy hides that, by how it refuses.

        Raises:
            TransientError: nothing that could be Headscale is there yet.
            ResponseError: something else is there, or a Headscale that is too old.
        """
        absent: ApiError | None = None
        for path, read in _FINGERPRINTS:
            try:
                answer = self._client.send("GET", path, authorized=False)
            except ApiError as error:
                if error.status not in _NOT_HERE:
                    raise
                absent = error
                continue
            found = read(answer.json) if isinstance(answer.json, dict) else None
            if found is not None:
                return found
        try:
            return self._detect_by_refusal()
        except (TransientError, ResponseError) as error:
            raise absent or error from None

    def _detect_by_refusal(self) -> Dialect:
        """Ask for the pre-auth keys of a user that cannot be: each way to name a user has its own answer.

        Source: GET /api/v1/preauthkey?user=, seen on 0.23.0 to 0.30.
        """
        try:
            answer = self._client.send("GET", "/api/v1/preauthkey", params={"user": _NOBODY})
        except NotFoundError:
            return Dialect.of_minor(23, "0.23 to 0.25")
        except ResponseError as error:
            if error.status != _BAD_REQUEST:
                raise
            return Dialect.of_minor(26, "0.26 or 0.27")
        match answer.json:
            case {"preAuthKeys": list()}:
                return Dialect.of_minor(28, "0.28 or newer")
        raise malformed_response("GET /version")

    def _send(self, method: str, path: str, **request: Any) -> Any:
        try:
            return self._client.send(method, path, **request).json
        except ApiError as error:
            # Servers are upgraded under us: after a lost connection, or a refusal
            # that makes no sense, the next request asks for the version again. So it does after a 500,
            # which 0.24 and 0.25 give to a list of keys that names none of several users.
            lost = isinstance(error, TransientError) and error.status in _MAY_BE_ANOTHER
            misunderstood = isinstance(error, ResponseError) and error.status in _MISUNDERSTOOD
            if lost or misunderstood:
                self._dialect = None
            raise

    def _one(self, method: str, path: str, member: str, parse: Callable[[Any], Parsed], *, body: Any = None) -> Parsed:
        payload = self._send(method, path, body=body)
        try:
            return parse(payload[member])
        except (ValueError, KeyError, TypeError, AttributeError):
            # Not chained: the payload's values, a key's secret among them, stay out of the traceback.
            raise malformed_response(f"{method} {path}") from None

    def _list(
        self,
        path: str,
        member: str,
        parse: Callable[[Any], Parsed],
        *,
        params: dict[str, str] | None = None,
        members: Collection[str] | None = None,
    ) -> list[Parsed]:
        payload = self._send("GET", path, params=params, members=members)
        try:
            items = payload[member]
            if not isinstance(items, list):
                raise TypeError("a list is a list")
            return [parse(item) for item in items]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise malformed_response(f"GET {path}") from None


def _node_path(node_id: str) -> str:
    if not _NODE_PATH_ID.fullmatch(node_id):
        raise ValueError("a node's id is a positive whole number")
    return f"/api/v1/node/{node_id}"
