"""Use Headscale through its REST API. Each request has the form, called dialect, that the server's release expects."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import httpx

from lifecycle.clients.headscale import parsing
from lifecycle.clients.headscale.dialect import Dialect, dialect_of_description, dialect_of_version
from lifecycle.clients.headscale.errors import malformed_response
from lifecycle.clients.json_client import JsonClient
from lifecycle.clients.response import well_formed
from lifecycle.domain.errors import ApiError, NotFoundError, ResponseError, TransientError
from lifecycle.domain.model import KeySpec, Node, PreAuthKey, User

Parsed = TypeVar("Parsed")

# Statuses with which a release refuses a request in the dialect of another release. For example, if there are several
# users, 0.24 and 0.25 return 500 for a list of keys without a user.
_OTHER_DIALECT = frozenset({400, 404, 405, 415, 422, 500})

# The paths from which the release is read without an API key, in this order. Each path exists only in some releases.
_VERSION_SOURCES: tuple[tuple[str, Callable[[Any], Dialect | None]], ...] = (
    ("/version", lambda body: dialect_of_version(body.get("version"))),
    ("/swagger/v1/openapiv2.json", dialect_of_description),
    ("/api/v1/openapi.json", dialect_of_description),
)
# Statuses for a path that does not exist. 401 is one of them, because up to 0.29 every path below /api needs an API
# key.
_MISSING_PATH = frozenset({401, 404})

# In no release is this text a valid name or id of a user.
_IMPOSSIBLE_USER = "~"


class HttpTransport:
    """A Headscale server, used through its REST API.

    Each method sends one request, and other requests before it if the release has to be detected.
    """

    def __init__(self, client: JsonClient) -> None:
        self._client = client
        self._dialect: Dialect | None = None

    def clock_skew(self) -> timedelta | None:
        """Return how far the server's clock was ahead of this machine's clock at its last response; None if unknown."""
        return self._client.http.clock_skew

    def version(self) -> str:
        """Return the version that the server reports, or a range of releases with the same API."""
        return self._current_dialect().version

    def users(self) -> list[User]:
        """Return every user. Source: GET /api/v1/user."""
        return self._list("/api/v1/user", "users", parsing.parse_complete_user)

    def nodes(self) -> list[Node]:
        """Return every node. Source: GET /api/v1/node, which has no pages in any release."""
        # Each node is parsed when its JSON object ends. Otherwise, the objects of thousands of nodes would use memory.
        return self._list("/api/v1/node", "nodes", parsing.require_node, object_hook=parsing.parse_if_node)

    def node(self, node_id: str) -> Node:
        """Return one node. Source: GET /api/v1/node/{id}."""
        return self._one("GET", _node_path(node_id), "node", parsing.parse_complete_node)

    def delete_node(self, node_id: str) -> None:
        """Delete a node. Source: DELETE /api/v1/node/{id}."""
        path = _node_path(node_id)
        # Headscale returns an object after the deletion. Another response is from a proxy, for example.
        if not isinstance(self._send("DELETE", path), dict):
            raise malformed_response(f"DELETE {path}")

    def create_pre_auth_key(self, spec: KeySpec, expires_at: datetime) -> PreAuthKey:
        """Create a key. Source: POST /api/v1/preauthkey.

        The expiration is always sent. Without it, Headscale creates a key that has already expired.
        """

        def create(dialect: Dialect) -> PreAuthKey:
            body = {
                "user": dialect.user_reference(spec.user),
                "reusable": spec.reusable,
                "ephemeral": spec.ephemeral,
                "expiration": expires_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "aclTags": sorted(spec.tags),
            }
            return self._one("POST", "/api/v1/preauthkey", "preAuthKey", parsing.parse_complete_pre_auth_key, body=body)

        return self._in_dialect(create)

    def matches_request(self, key: PreAuthKey, expires_at: datetime) -> bool:
        """Return True if a listed key can be from a request to create a key with this expiry."""
        return key.expires_at == expires_at

    def pre_auth_keys(self, user: User) -> list[PreAuthKey]:
        """Return the keys of the user, or of all users (from 0.28 on). Source: GET /api/v1/preauthkey."""

        def list_keys(dialect: Dialect) -> list[PreAuthKey]:
            params = None if dialect.uses_key_ids else {"user": dialect.user_reference(user)}
            return self._list("/api/v1/preauthkey", "preAuthKeys", parsing.parse_complete_pre_auth_key, params=params)

        return self._in_dialect(list_keys)

    def api_key_expires_at(self) -> datetime | None:
        """Return when the API key in use expires; None if unknown. Source: GET /api/v1/apikey.

        The list contains a prefix of each key. The key in use is found by its prefix.
        """
        # Read the API key from its file again. Other requests do this only if Headscale refuses the key, but Headscale
        # may still accept the previous key after a rotation.
        api_key = self._client.reload_token()
        keys = self._list("/api/v1/apikey", "apiKeys", parsing.parse_api_key)
        in_use = [expires_at for prefix, expires_at in keys if api_key.startswith(prefix)]
        return in_use[0] if len(in_use) == 1 else None

    def expire_pre_auth_key(self, key: PreAuthKey, user: User) -> None:
        """Expire a key. Source: POST /api/v1/preauthkey/expire."""

        def expire(dialect: Dialect) -> None:
            secret = key.known_secret.get_secret_value() if key.known_secret else ""
            body = {"id": key.id} if dialect.uses_key_ids else {"user": dialect.user_reference(user), "key": secret}
            self._send("POST", "/api/v1/preauthkey/expire", body=body)

        # The release is detected again, because the server may have been upgraded: for a request in the older dialect,
        # 0.28 and 0.29 expire nothing and return 200.
        self._dialect = None
        self._in_dialect(expire)

    def _in_dialect(self, operation: Callable[[Dialect], Parsed]) -> Parsed:
        """Send a request that depends on the release. If it fails, and another release is then detected, repeat it."""
        dialect = self._current_dialect()
        try:
            return operation(dialect)
        except (NotFoundError, ResponseError) as error:
            # Up to 0.27, a request for a list of keys without a user can cause a NotFoundError. After another error
            # that can mean another dialect, `_send` has already reset the dialect.
            if isinstance(error, NotFoundError):
                self._dialect = None
            elif error.status not in _OTHER_DIALECT:
                raise
            if self._current_dialect() == dialect:
                raise
        # A refused request had no effect, so it is safe to repeat it.
        return operation(self._current_dialect())

    def _current_dialect(self) -> Dialect:
        if self._dialect is None:
            self._dialect = self._detect()
        return self._dialect

    def _detect(self) -> Dialect:
        """Detect the release by a document that needs no API key, or else by the refusal of a request.

        Raises:
            TransientError: the server does not respond as Headscale does. It may be starting.
            ResponseError: it is another server, or an unsupported release.
        """
        missing: ApiError | None = None
        for path, read in _VERSION_SOURCES:
            try:
                response = self._client.send("GET", path, authorized=False)
            except ApiError as error:
                if error.status not in _MISSING_PATH:
                    raise
                missing = error
                continue
            dialect = read(response.json) if isinstance(response.json, dict) else None
            if dialect is not None:
                return dialect
        try:
            return self._detect_by_refusal()
        except (TransientError, ResponseError) as error:
            # The error for a missing path explains more, for example that Headscale may be starting.
            raise missing or error from None

    def _detect_by_refusal(self) -> Dialect:
        """Detect the release by its response to a request for the keys of a user that cannot exist.

        Source: GET /api/v1/preauthkey?user=, observed on 0.23.0 to 0.30.
        """
        try:
            response = self._client.send("GET", "/api/v1/preauthkey", params={"user": _IMPOSSIBLE_USER})
        except NotFoundError:
            return Dialect.of_minor(23, "0.23 to 0.25")
        except ResponseError as error:
            if error.status != httpx.codes.BAD_REQUEST:
                raise
            return Dialect.of_minor(26, "0.26 or 0.27")
        match response.json:
            case {"preAuthKeys": list()}:
                return Dialect.of_minor(28, "0.28 or newer")
        # `_detect` raises this error only if none of the paths is missing, and none of the responses shows the release.
        raise malformed_response("GET /version")

    def _send(self, method: str, path: str, **request: Any) -> Any:
        try:
            return self._client.send(method, path, **request).json
        except ApiError as error:
            # The server may have been upgraded, so the next request detects its release again.
            is_unanswered = isinstance(error, TransientError) and error.status is None
            is_refused = isinstance(error, ResponseError) and error.status in _OTHER_DIALECT
            if is_unanswered or is_refused:
                self._dialect = None
            raise

    def _one(self, method: str, path: str, member: str, parse: Callable[[Any], Parsed], **request: Any) -> Parsed:
        return self._parsed(method, path, lambda payload: parse(payload[member]), **request)

    def _list(self, path: str, member: str, parse: Callable[[Any], Parsed], **request: Any) -> list[Parsed]:
        def parse_list(payload: Any) -> list[Parsed]:
            items = payload[member]
            if not isinstance(items, list):
                raise TypeError("not a list")
            return [parse(item) for item in items]

        return self._parsed("GET", path, parse_list, **request)

    def _parsed(self, method: str, path: str, parse: Callable[[Any], Parsed], **request: Any) -> Parsed:
        """Send a request, and parse the JSON of its response."""
        what = f"{method} {path}"
        payload = self._send(method, path, **request)
        try:
            with well_formed(malformed_response(what)):
                return parse(payload)
        except ResponseError:
            # With a version, the message says whether this program was tested with this release.
            version = ""
            with suppress(ApiError):
                version = self._current_dialect().version
            raise malformed_response(what, version=version) from None


def _node_path(node_id: str) -> str:
    # Up to 0.26, the id 0 addresses the first node.
    return f"/api/v1/node/{parsing.parse_required_id(node_id)}"
