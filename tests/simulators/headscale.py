"""The simulated Headscale: a server with the API of a chosen release.

Only the requests that the program needs are supported. Other requests are refused, even if Headscale accepts them.
Tests change the state of the server with the methods of its base class `Tailnet`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from email.utils import format_datetime
from functools import cache
from typing import Any, Final, Literal

from tests.simulators.dialects import DIALECTS, KeyUser, KeyUserFormat, NoExpiry, UnknownPath, openapi, swagger
from tests.simulators.messages import (
    NoRouteError,
    Request,
    Response,
    Router,
    WrongMethodError,
    json_response,
    text_response,
)
from tests.simulators.tailnet import (
    Node,
    NodeGoneError,
    PreAuthKey,
    RegistrationRefusedError,
    Tailnet,
    User,
)
from tests.simulators.wire import (
    EXHAUSTED,
    INVALID,
    NOT_FOUND,
    UNIMPLEMENTED,
    ZERO,
    FieldType,
    RefusedError,
    parse_id,
    read_body,
    time_text,
)

__all__ = ["HeadscaleSimulator", "Node", "NodeGoneError", "PreAuthKey", "RegistrationRefusedError", "User"]

TAGGED_DEVICES: Final = User(id=2147455555, name="tagged-devices", email="", provider="", created_at=ZERO)

TOO_MANY_NODES: Final = 6000
"""A list of more nodes than about this number exceeds the size limit of a gRPC message, 4 MiB."""

BLANK_PAGE: Final = (
    '<!DOCTYPE html><html lang="en"><head><meta charset="UTF-8"><link href="/favicon.ico" rel="icon"></head>'
    "<body></body></html>"
)

REGISTER_METHODS: Final = {
    "auth_key": "REGISTER_METHOD_AUTH_KEY",
    "cli": "REGISTER_METHOD_CLI",
    "oidc": "REGISTER_METHOD_OIDC",
}

ResponseKind = Literal["list", "get", "change"]
"""Kinds of responses. The JSON of the same node or key differs between them."""

Handler = Callable[["Request", Mapping[str, str]], Response]

API: Final = (
    ("GET", "/api/v1/apikey", "_list_api_keys"),
    ("GET", "/api/v1/user", "_list_users"),
    ("GET", "/api/v1/node", "_list_nodes"),
    ("GET", "/api/v1/node/<node_id>", "_get_node"),
    ("DELETE", "/api/v1/node/<node_id>", "_delete_node"),
    ("GET", "/api/v1/preauthkey", "_list_keys"),
    ("POST", "/api/v1/preauthkey", "_create_key"),
    ("POST", "/api/v1/preauthkey/expire", "_expire_key"),
)
"""Method, path and handler of the endpoints that require an API key. The API of old releases is not simulated."""


@cache
def _routes(version: str) -> Router[tuple[str, bool]]:
    """Return the routes of a release: the handler of each endpoint, and whether it requires the API key."""
    dialect = DIALECTS[version]
    open_endpoints = [
        ("GET", "/health", "_health"),
        ("GET", "/swagger/v1/openapiv2.json", "_swagger")
        if dialect.swagger
        else ("GET", "/api/v1/openapi.json", "_openapi"),
        # For simulated Tailscale clients in other processes. The real Headscale does not have this endpoint.
        ("POST", "/sim/<action>", "_sim"),
    ]
    if dialect.version_path:
        open_endpoints.append(("GET", "/version", "_version"))
    return Router(
        (method, path, (handler, needs_key))
        for needs_key, endpoints in ((False, open_endpoints), (True, () if dialect.machine_api else API))
        for method, path, handler in endpoints
    )


class _OtherFormatError(Exception):
    """An error response that is not in the format of Headscale's API errors."""

    def __init__(self, response: Response) -> None:
        super().__init__(str(response.status))
        self.response = response


class HeadscaleSimulator(Tailnet):
    """A Headscale server."""

    # --- From request to response -------------------------------------------------------------------

    def answer(self, request: Request, *, from_previous_state: bool) -> Response:
        """Execute a request, with the current state or with that before the last change. The caller holds the lock."""
        if not from_previous_state:
            return self._with_date(self._answer(request))
        current, self._state = self._state, self._previous_state.copy()
        try:
            return self._with_date(self._answer(request))
        finally:
            self._state = current

    def _with_date(self, response: Response) -> Response:
        """Add the Date header with the server's time, as Go's HTTP server does."""
        response.headers["date"] = format_datetime(self._now(), usegmt=True)
        return response

    def _answer(self, request: Request) -> Response:
        try:
            handler, arguments = self._handler(request)
            return handler(request, arguments)
        except RefusedError as error:
            return error.response(self.dialect)
        except _OtherFormatError as error:
            return error.response

    def _handler(self, request: Request) -> tuple[Handler, Mapping[str, str]]:
        """Return the handler of a request and the arguments in the path.

        Check the API key if it is required. For unknown paths, this depends on the release.

        Raises:
            RefusedError, _OtherFormatError: no handler exists, or the API key is wrong. The release determines the
                format of the response, and so which of the errors is raised.
        """
        dialect = self.dialect
        is_for_grpc_gateway = request.path.startswith("/api/v1/") and not dialect.uses_huma
        is_below_api = request.path == "/api" or request.path.startswith("/api/")
        if is_for_grpc_gateway or (dialect.all_of_api_needs_key and is_below_api):
            self._check_key(request)
        try:
            (name, needs_key), arguments = _routes(self.version).match(request.method, request.path)
        except WrongMethodError as error:
            if is_for_grpc_gateway:
                raise RefusedError("Method Not Allowed", code=UNIMPLEMENTED) from error
            raise _OtherFormatError(Response(status=405)) from error
        except NoRouteError as error:
            if is_for_grpc_gateway:
                raise RefusedError("Not Found", code=NOT_FOUND) from error
            raise _OtherFormatError(self._unknown_path()) from error
        if needs_key:
            self._check_key(request)
        handler: Handler = getattr(self, name)
        return handler, arguments

    def _unknown_path(self) -> Response:
        match self.dialect.unknown_path:
            case UnknownPath.EMPTY_404:
                return Response(status=404)
            case UnknownPath.BLANK_PAGE_200:
                return text_response(BLANK_PAGE, 200, content_type="text/html; charset=utf-8")
            case UnknownPath.TEXT_404:
                return text_response("404 page not found\n", 404)

    def _check_key(self, request: Request) -> None:
        # The `headscale` command uses the server's Unix socket, which requires no API key.
        if request.on_unix_socket:
            return
        header = request.headers.get("authorization", "")
        status = self.dialect.wrong_key_status if self.database_is_down else 401
        if header.startswith("Bearer "):
            token = header.removeprefix("Bearer ")
            known = None if self.database_is_down else self._known_api_key(token)
            if known is not None and known.expires_at > self._now():
                return
            if known is None:
                status = self.dialect.wrong_key_status
        if self.dialect.uses_huma:
            raise RefusedError("Unauthorized", status=401)
        raise _OtherFormatError(text_response("Unauthorized", status))

    # --- Rows as JSON -------------------------------------------------------------------------------

    def _time(self, instant: datetime, *, row: int | None = None) -> str:
        """Return the text of an instant.

        Args:
            instant: the instant.
            row: the id of the database row if the server itself set the time. Such times have nanoseconds.
        """
        return time_text(self.dialect, instant, nanos=0 if row is None else row * 37 % 1000)

    def _user_json(self, user: User) -> dict[str, Any]:
        name = user.name
        if not name and self.dialect.user_name_falls_back:
            name = user.email or str(user.id)
        body = {"id": str(user.id), "name": name, "createdAt": self._time(user.created_at, row=user.id)}
        if not self.dialect.user_details:
            return body
        return body | {
            "displayName": "Tagged Devices" if user is TAGGED_DEVICES else "",
            "email": user.email,
            "providerId": f"https://sso.example.com/{user.id}" if user.provider else "",
            "provider": user.provider,
            "profilePicUrl": "",
        }

    def _key_json(self, key: PreAuthKey, kind: ResponseKind) -> dict[str, Any]:
        return {
            "user": self._key_user_json(key),
            "id": str(key.id),
            "key": key.key if kind == "change" or not self.dialect.keys_masked else key.masked,
            "reusable": key.reusable,
            "ephemeral": key.ephemeral,
            "used": key.used,
            "expiration": self._time(key.expires_at),
            "createdAt": self._time(key.created_at, row=key.id),
            "aclTags": list(key.tags) if kind == "list" or self.dialect.key_tags_everywhere else [],
        }

    def _key_user_json(self, key: PreAuthKey) -> str | dict[str, Any] | None:
        user = self._state.users.get(key.user_id or 0)
        if user is None:
            return None
        match self.dialect.key_user_format:
            case KeyUserFormat.NAME:
                return user.name
            case KeyUserFormat.EMAIL_OR_NAME:
                return user.email or user.name
            case KeyUserFormat.OBJECT:
                return self._user_json(user)

    def _node_json(self, node: Node, kind: ResponseKind) -> dict[str, Any]:
        dialect = self.dialect
        key = self._shown_key(node)
        body: dict[str, Any] = {
            "id": str(node.id),
            "machineKey": node.machine_key,
            "nodeKey": node.node_key,
            "discoKey": node.disco_key,
            "ipAddresses": list(node.addresses),
            "name": node.name,
            "user": self._node_user_json(node, kind),
            "lastSeen": None if node.last_seen is None else self._time(node.last_seen, row=node.id),
            "expiry": self._expiry_json(node),
            "preAuthKey": None if key is None else self._key_json(key, "get"),
            "createdAt": self._time(node.created_at, row=node.id),
            "registerMethod": REGISTER_METHODS[node.registered_by],
            "givenName": node.given_name,
            "online": self.online(node.id),
        }
        if dialect.forced_tags:
            valid = list(node.tags) if kind == "list" and dialect.valid_tags_in_list else []
            body |= {"forcedTags": list(node.tags), "invalidTags": [], "validTags": valid}
        else:
            body["tags"] = list(node.tags)
        if dialect.routes_in_node:
            body |= {"approvedRoutes": [], "availableRoutes": [], "subnetRoutes": []}
        return body

    def _node_user_json(self, node: Node, kind: ResponseKind) -> dict[str, Any] | None:
        if node.tags and self.dialect.tagged_pseudo_user and kind == "list":
            return self._user_json(TAGGED_DEVICES)
        if node.tags and self.dialect.tagged_user_hidden:
            return None
        user = self._state.users.get(node.user_id or 0)
        return None if user is None else self._user_json(user)

    def _expiry_json(self, node: Node) -> str | None:
        if node.expires_at is not None:
            return self._time(node.expires_at, row=node.id)
        no_expiry = self.dialect.no_expiry
        if no_expiry is NoExpiry.NULL or (no_expiry is NoExpiry.NULL_IF_TAGGED and node.tags):
            return None
        return self._time(ZERO)

    # --- The server and its API keys ----------------------------------------------------------------

    def _health(self, _request: Request, _arguments: Mapping[str, str]) -> Response:
        status, code = ("fail", 500) if self.database_is_down else ("pass", 200)
        return json_response({"status": status}, code, content_type="application/health+json; charset=utf-8")

    def _version(self, _request: Request, _arguments: Mapping[str, str]) -> Response:
        return json_response(
            {
                "version": self.reported_version or f"v{self.version}",
                "commit": "0" * 40,
                "buildTime": "2026-01-01T00:00:00Z",
                "go": {"version": "go1.25.5", "os": "linux", "arch": "amd64"},
                "dirty": False,
            }
        )

    def _swagger(self, _request: Request, _arguments: Mapping[str, str]) -> Response:
        return json_response(swagger(self.dialect), content_type="application/json; charset=utf-8")

    def _openapi(self, _request: Request, _arguments: Mapping[str, str]) -> Response:
        return json_response(openapi(self.dialect), content_type="application/openapi+json")

    def _list_api_keys(self, _request: Request, _arguments: Mapping[str, str]) -> Response:
        keys = [
            {
                "id": str(key.id),
                "prefix": key.masked if self.dialect.keys_masked else key.prefix,
                "expiration": self._time(key.expires_at),
                "createdAt": self._time(key.created_at, row=key.id),
                "lastSeen": None,
            }
            for key in self._state.api_keys.values()
        ]
        return json_response({"apiKeys": keys})

    # --- Users --------------------------------------------------------------------------------------

    def _list_users(self, request: Request, _arguments: Mapping[str, str]) -> Response:
        _refuse_filters(request)
        return json_response({"users": [self._user_json(user) for user in self.users]})

    def _user_by_name(self, name: str) -> User:
        users = [user for user in self.users if user.name == name]
        if not name and self.dialect.sole_user_by_default:
            users = self.users
        if not users:
            raise RefusedError("user not found", status=404)
        if len(users) > 1:
            raise RefusedError(f"expected exactly one user, found {len(users)}", status=500)
        return users[0]

    def _user_by_id(self, user_id: int, *, detail: str = "") -> User:
        user = self._state.users.get(user_id)
        if user is None:
            raise RefusedError("user not found", status=404, detail=detail)
        return user

    # --- Nodes --------------------------------------------------------------------------------------

    def _list_nodes(self, request: Request, _arguments: Mapping[str, str]) -> Response:
        _refuse_filters(request)
        if len(self.nodes) > TOO_MANY_NODES and not self.dialect.uses_huma:
            raise RefusedError("grpc: received message larger than max (4200000 vs. 4194304)", code=EXHAUSTED)
        return json_response({"nodes": [self._node_json(node, "list") for node in self.nodes]})

    def _get_node(self, _request: Request, arguments: Mapping[str, str]) -> Response:
        return json_response({"node": self._node_json(self._requested_node(arguments), "get")})

    def _delete_node(self, _request: Request, arguments: Mapping[str, str]) -> Response:
        self.delete_node(self._requested_node(arguments).id)
        return json_response({})

    def _requested_node(self, arguments: Mapping[str, str]) -> Node:
        """Return the node in the path of a request."""
        dialect = self.dialect
        node_id = parse_id(arguments["node_id"], parameter="node_id")
        node = self._state.nodes.get(node_id)
        if node is None and node_id == 0 and dialect.zero_id_hits_first and self._state.nodes:
            return self.nodes[0]
        if node is None:
            raise RefusedError(dialect.unknown_node_text, code=dialect.unknown_node_code, status=404)
        return node

    # --- Pre-auth keys ------------------------------------------------------------------------------

    def _list_keys(self, request: Request, _arguments: Mapping[str, str]) -> Response:
        keys = self.keys
        if not self.dialect.identifies_keys_by_id:
            parameter = request.parameters.get("user")
            by_name = self.dialect.key_user is KeyUser.NAME
            user = self._user_by_name(parameter) if by_name else self._user_by_id(parse_id(parameter))
            keys = [key for key in keys if key.user_id == user.id]
        return json_response({"preAuthKeys": [self._key_json(key, "list") for key in keys]})

    def _create_key(self, request: Request, _arguments: Mapping[str, str]) -> Response:
        dialect = self.dialect
        detail = "creating pre-auth key"
        by_name = dialect.key_user is KeyUser.NAME
        fields = {
            "user": FieldType.STRING if by_name else FieldType.ID,
            "reusable": FieldType.BOOLEAN,
            "ephemeral": FieldType.BOOLEAN,
            "expiration": FieldType.TIME,
            "aclTags": FieldType.STRINGS,
        }
        body = read_body(request, dialect, fields)
        tags = tuple(body.get("aclTags", ()))
        _check_tags(tags)
        user: User | None = None
        if by_name:
            user = self._user_by_name(body.get("user", ""))
        elif body.get("user") or dialect.key_user is KeyUser.ID:
            user = self._user_by_id(body.get("user", 0), detail=detail)
        elif not tags:
            raise RefusedError("auth-key must be either tagged or owned by user", status=400, detail=detail)
        self._save_previous_state()
        key = self._add_key(
            None if user is None else user.id,
            reusable=body.get("reusable", False),
            ephemeral=body.get("ephemeral", False),
            # Headscale reads an omitted expiry as the year 1, so the new key has already expired.
            expires_at=body.get("expiration", ZERO),
            tags=tags,
        )
        return json_response({"preAuthKey": self._key_json(key, "change")})

    def _expire_key(self, request: Request, _arguments: Mapping[str, str]) -> Response:
        dialect = self.dialect
        if not dialect.identifies_keys_by_id:
            by_name = dialect.key_user is KeyUser.NAME
            fields = {"user": FieldType.STRING if by_name else FieldType.ID, "key": FieldType.STRING}
            self.expire_key(self._key_of_user(read_body(request, dialect, fields)).id)
            return json_response({})
        key_id = read_body(request, dialect, {"id": FieldType.ID}).get("id", 0)
        if key_id in self._state.keys:
            self.expire_key(key_id)
        elif dialect.unknown_key_is_404:
            raise RefusedError("record not found", status=404, detail="expiring pre-auth key")
        return json_response({})

    def _key_of_user(self, body: Mapping[str, Any]) -> PreAuthKey:
        """Return the pre-auth key that a request identifies by its secret and its user, as releases up to 0.27 do."""
        key = next((key for key in self.keys if key.key == body.get("key")), None)
        must_be_valid = self.dialect.expiring_needs_valid_key
        if key is None:
            raise RefusedError("AuthKey not found" if must_be_valid else "record not found")
        if must_be_valid and key.expires_at <= self._now():
            raise RefusedError("AuthKey expired")
        if must_be_valid and key.used and not key.reusable:
            raise RefusedError("AuthKey has already been used")
        owner = self._state.users[key.user_id or 0]
        by_name = self.dialect.key_user is KeyUser.NAME
        if body.get("user") != (owner.name if by_name else owner.id):
            raise RefusedError("user mismatch" if by_name else "preauth key does not belong to user")
        return key

    # --- Simulated Tailscale clients in other processes -------------------------------------------------

    def _sim(self, request: Request, arguments: Mapping[str, str]) -> Response:
        """Call the method that the path names, such as `register`, with the arguments in the body."""
        action = getattr(self, arguments["action"])
        try:
            node: Node | None = action(**request.json())
        except RegistrationRefusedError as error:
            return text_response(str(error), 401)
        except NodeGoneError as error:
            return text_response(str(error), 404)
        return json_response({"id": node.id, "addresses": node.addresses} if node else {})


def _refuse_filters(request: Request) -> None:
    """Refuse query parameters, which the program does not send. Headscale ignores parameters that it does not know."""
    if request.query:
        raise RefusedError("the simulator supports no filters", code=INVALID, status=400)


def _check_tags(tags: tuple[str, ...]) -> None:
    """Refuse a value that is not a tag."""
    for tag in tags:
        message = ""
        if not tag.startswith("tag:"):
            message = "tag must start with the string 'tag:'"
        elif tag.lower() != tag:
            message = "tag should be lowercase"
        elif len(tag.split()) != 1:
            message = "tags must not contain spaces"
        if message:
            raise RefusedError(message, code=INVALID, status=400, detail="invalid tag")
