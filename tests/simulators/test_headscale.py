"""Test that the simulated Headscale behaves like each release of Headscale.

Many tests are functions with the decorator `fact`. Such a function gets a new server and returns a result. The argument
of the decorator has the expected results, by the first release with this result. For example, with
`{"0.23": 404, "0.27": 200}`, the function must return 404 before 0.27, and 200 from 0.27 on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import httpx
import pytest

from tests.simulators import faults
from tests.simulators.dialects import VERSIONS
from tests.simulators.headscale import HeadscaleSimulator, Node, NodeGoneError, PreAuthKey, RegistrationRefusedError
from tests.simulators.memory import memory_transport

NOON: Final = datetime(2026, 8, 1, 12, 0, tzinfo=UTC)
# Go's zero time.
ZERO: Final = "0001-01-01T00:00:00Z"
TAGS: Final = ("tag:svc",)

each_release = pytest.mark.parametrize("version", VERSIONS)


def value_for(version: str, since: Mapping[str, Any]) -> Any:
    """Return the value for a release. The key of each value is the first release to which the value applies."""
    return since[max(release for release in since if release <= version)]


class Server(HeadscaleSimulator):
    """A server that has the user `svc`. Its clock advances only when a test changes `clock`."""

    def __init__(self, version: str = "0.28.0", **settings: Any) -> None:
        self.clock = NOON
        super().__init__(version, now=lambda: self.clock, **settings)
        self.add_user("svc")

    def api(self, authorization: str | None = None) -> httpx.Client:
        """Return a client of the HTTP API.

        Args:
            authorization: the Authorization header. If it is omitted, the client sends the server's API key. If it is
                empty, the client sends no header.
        """
        header = f"Bearer {self.api_key}" if authorization is None else authorization
        return httpx.Client(
            transport=memory_transport(self.handle),
            base_url="http://headscale.test",
            headers={"Authorization": header} if header else {},
        )

    def get(self, path: str) -> Any:
        """Return the JSON of the response to a GET request."""
        return self.api().get(path).json()

    def post(self, path: str, json: Any = None) -> Any:
        """Return the JSON of the response to a POST request."""
        return self.api().post(path, json=json).json()

    def list_nodes(self) -> list[dict[str, Any]]:
        """Return the nodes in the response to GET /api/v1/node."""
        nodes: list[dict[str, Any]] = self.get("/api/v1/node")["nodes"]
        return nodes

    def key_request(self, **fields: Any) -> dict[str, Any]:
        """Return the body of a request to create a pre-auth key. Fields with the value `...` are omitted."""
        body = {"user": "svc" if self.version < "0.26" else "1", "expiration": "2026-08-01T13:00:00Z", **fields}
        return {name: value for name, value in body.items() if value is not ...}

    def expire_request(self, key: PreAuthKey | None) -> dict[str, str]:
        """Return the body of a request to expire a pre-auth key. None stands for a key that does not exist."""
        if self.version >= "0.28":
            return {"id": str(key.id) if key else "99"}
        return {"user": "svc" if self.version < "0.26" else "1", "key": key.key if key else "none"}

    def register_new(self, **key: Any) -> Node:
        """Create a pre-auth key with these attributes, and register a new machine with it."""
        return self.register(key=self.create_key("svc", **key).key, hostname="a1")

    def register_again(self, node: Node, key: str | None, hostname: str = "a1") -> Node | str:
        """Log in again from the machine of a node, with or without a pre-auth key. Return the node, or the refusal."""
        try:
            return self.register(key=key, hostname=hostname, machine_key=node.machine_key, node_key=node.node_key)
        except RegistrationRefusedError as error:
            return str(error)


@pytest.fixture(params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Server:
    """A server of each release."""
    return Server(request.param)


Fact = tuple[Callable[[Server], Any], Mapping[str, Any]]
FACTS: Final[dict[str, Fact]] = {}
"""The functions with the decorator `fact` and their expected results, by the name of the function."""


def fact(since: Mapping[str, Any]) -> Callable[[Callable[[Server], Any]], None]:
    """Return a decorator that adds a function to FACTS, with its expected results from each release on."""

    def register(function: Callable[[Server], Any]) -> None:
        assert function.__name__ not in FACTS
        FACTS[function.__name__] = (function, since)

    return register


@each_release
def test_functions_return_the_expected_results(version: str) -> None:
    expected = {name: value_for(version, since) for name, (_, since) in FACTS.items()}
    assert {name: function(Server(version)) for name, (function, _) in FACTS.items()} == expected


# --- Statuses -----------------------------------------------------------------------------------------

# Expected statuses, by the first release that returns them.
ALWAYS_400: Final = {"0.23": 400}
INVALID_FIELD: Final = {"0.23": 400, "0.30": 422}
# For a request that names no user. 0.24 and 0.25 then use the server's only user.
WITHOUT_USER: Final = {"0.23": 500, "0.24": 200, "0.26": 500}
KEYS: Final = "/api/v1/preauthkey"

REQUESTS: Final[list[tuple[str, str, Any, Mapping[str, int]]]] = [
    ("DELETE", "/api/v1/node", None, {"0.23": 501, "0.30": 405}),
    ("GET", "/api/v1/node/99", None, {"0.23": 500, "0.27": 404}),
    ("DELETE", "/api/v1/node/99", None, {"0.23": 500, "0.27": 404}),
    ("GET", "/api/v1/node/abc", None, ALWAYS_400),
    ("DELETE", "/api/v1/node/1%20", None, ALWAYS_400),
    ("GET", "/api/v1/node/-1", None, ALWAYS_400),
    # The simulator supports no filters.
    *(("GET", f"/api/v1/{path}", None, ALWAYS_400) for path in ("node?user=svc", "user?name=svc")),
    ("POST", KEYS, None, {**WITHOUT_USER, "0.30": 400}),
]
"""Requests to a server with one node: method, path, body, and the expected status from each release on."""

NEW_KEYS: Final[list[tuple[dict[str, Any], Mapping[str, int]]]] = [
    ({}, {"0.23": 200}),
    ({"user": "svc"}, {"0.23": 200, "0.26": 400}),
    ({"user": "1"}, {"0.23": 500, "0.26": 200}),
    ({"user": 1}, {"0.23": 400, "0.26": 200, "0.30": 422}),
    ({"user": "99"}, {"0.23": 500, "0.30": 404}),
    ({"user": ...}, {**WITHOUT_USER, "0.30": 400}),
    ({"user": ..., "aclTags": TAGS}, {**WITHOUT_USER, "0.28": 200}),
    *(({"aclTags": [tag]}, ALWAYS_400) for tag in ("svc", "tag:Svc", "tag:a b")),
    *(({"expiration": text}, INVALID_FIELD) for text in ("2026-08-01T13:00:00", "tomorrow", "2026-08-01", 5)),
    ({"reusable": "yes"}, INVALID_FIELD),
    ({"aclTags": "tag:a"}, INVALID_FIELD),
    ({"aclTags": [1]}, INVALID_FIELD),
    ({"color": "blue"}, {"0.23": 200, "0.30": 422}),
    ({"acl_tags": TAGS}, {"0.23": 200, "0.30": 422}),
]
"""Changed fields of a request to create a pre-auth key, and the expected status from each release on."""


@each_release
def test_requests_have_the_expected_statuses(version: str) -> None:
    def status(method: str, path: str, body: Any) -> int:
        server = Server(version)
        server.add_node("a1", user="svc")
        return server.api().request(method, path, json=body).status_code

    statuses = [(method, path, status(method, path, body)) for method, path, body, _ in REQUESTS]
    assert statuses == [(method, path, value_for(version, since)) for method, path, _, since in REQUESTS]
    key_statuses = [(fields, status("POST", KEYS, Server(version).key_request(**fields))) for fields, _ in NEW_KEYS]
    assert key_statuses == [(fields, value_for(version, since)) for fields, since in NEW_KEYS]


@fact({"0.23": [400, 200], "0.30": [400, 415]})
def malformed_body_and_other_content_type(server: Server) -> list[int]:
    bodies = ((b"{", "application/json"), (b'{"user": "svc"}', "text/plain"))
    if server.version >= "0.26":
        bodies = (bodies[0], (b'{"user": "1"}', "text/plain"))
    return [
        server.api().post(KEYS, content=content, headers={"Content-Type": content_type}).status_code
        for content, content_type in bodies
    ]


@fact(
    {
        "0.23": {"code": 2, "message": "record not found", "details": []},
        "0.27": {"code": 5, "message": "node not found", "details": []},
        "0.30": {"title": "Not Found", "status": 404, "detail": "node not found"},
    }
)
def error_of_an_unknown_node(server: Server) -> Any:
    return server.get("/api/v1/node/99")


# --- Detection of the release -------------------------------------------------------------------------


@fact({"0.23": (404, ""), "0.28": (200, "<html"), "0.29": (404, "404 page not found")})
def unknown_path(server: Server) -> tuple[int, str]:
    response = server.api().get("/nowhere")
    assert "json" not in response.headers.get("content-type", "")
    match = re.search("<html|404 page not found|^$", response.text)
    assert match is not None
    return response.status_code, match[0]


def test_version_is_reported_from_0_27_on(server: Server) -> None:
    response = server.api("").get("/version")
    if server.version < "0.27":
        assert (response.status_code, response.content) == (404, b"")
    else:
        assert response.json()["version"] == f"v{server.version}"
        server.reported_version = "dev"
        assert server.get("/version")["version"] == "dev"


def test_description_of_the_api_has_the_paths_and_fields_of_the_release(server: Server) -> None:
    client = server.api("")
    response = client.get("/swagger/v1/openapiv2.json")
    if server.version >= "0.30":
        assert response.status_code == 404
        assert "json" in client.get("/api/v1/openapi.json").headers["content-type"]
        return
    paths, definitions = response.json()["paths"], response.json()["definitions"]
    user = definitions["v1CreatePreAuthKeyRequest"]["properties"]["user"]
    assert "/api/v1/node" in paths
    assert (user.get("format") == "uint64") == (server.version >= "0.26")
    assert ("delete" in paths[KEYS]) == (server.version >= "0.28")


def test_api_of_0_22_has_machines_instead_of_nodes() -> None:
    server = Server("0.22.3")
    assert "/api/v1/machine" in server.get("/swagger/v1/openapiv2.json")["paths"]
    assert server.api().get("/api/v1/node").status_code == 404


# --- API keys, and the database -----------------------------------------------------------------------


@fact({"0.23": [401, 401, 500], "0.27": [401, 401, 401]})
def requests_without_a_valid_api_key(server: Server) -> list[int]:
    """Return the statuses without a header, with another kind of header, and with an unknown key."""
    responses = [server.api(header).get("/api/v1/node") for header in ("", "Basic abc", "Bearer abc.def")]
    unauthorized = {"title": "Unauthorized", "status": 401, "detail": "Unauthorized"}
    for response in responses:
        assert response.json() == unauthorized if server.version >= "0.30" else response.text == "Unauthorized"
    return [response.status_code for response in responses]


def test_rotated_api_key_is_refused(server: Server) -> None:
    old = server.api()
    assert old.get("/api/v1/node").status_code == 200
    server.rotate_api_key()
    assert [client.get("/api/v1/node").status_code for client in (old, server.api())] == [401, 200]


@fact({"0.23": False, "0.28": True})
def list_of_api_keys_is_masked(server: Server) -> bool:
    (key,) = server.get("/api/v1/apikey")["apiKeys"]
    assert server.api_key not in key["prefix"]
    return bool(key["prefix"].endswith("***"))


@each_release
@pytest.mark.parametrize("created", ["0.24.3", "0.25.1"])
def test_api_keys_of_0_24_are_refused_from_0_28_on(version: str, created: str) -> None:
    server = Server(created)
    client = server.api()
    server.upgrade(version)
    refused = created == "0.24.3" and version >= "0.28"
    assert (client.get("/api/v1/node").status_code == 401) == refused
    assert server.accepts_api_key != refused


@fact({"0.23": [500, 500, 200], "0.27": [500, 401, 200]})
def requests_during_an_outage_of_the_database(server: Server) -> list[int]:
    """Return the statuses of /health and the list of nodes during the outage, and of the list after the outage."""
    client = server.api()
    assert client.get("/health").json() == {"status": "pass"}
    server.database_is_down = True
    assert client.get("/health").json() == {"status": "fail"}
    statuses = [client.get("/health").status_code, client.get("/api/v1/node").status_code]
    server.database_is_down = False
    return [*statuses, client.get("/api/v1/node").status_code]


# --- Nodes --------------------------------------------------------------------------------------------


def test_fields_of_a_node(server: Server) -> None:
    created = server.add_node("grafana.example.com", user="svc").created_at
    (node,) = server.list_nodes()
    tags = {"forcedTags", "validTags", "invalidTags"} if server.version < "0.28" else {"tags"}
    routes = {"approvedRoutes", "availableRoutes", "subnetRoutes"} if server.version >= "0.26" else set()
    assert set(node) == tags | routes | {
        "id", "machineKey", "nodeKey", "discoKey", "ipAddresses", "name", "user", "lastSeen", "expiry",
        "preAuthKey", "createdAt", "registerMethod", "givenName", "online",
    }  # fmt: skip
    assert (node["id"], node["name"], node["online"]) == ("1", "grafana.example.com", True)
    assert node["registerMethod"] == "REGISTER_METHOD_AUTH_KEY"
    assert node["ipAddresses"] == ["100.64.0.1", "fd7a:115c:a1e0::1"]
    assert re.fullmatch("mkey:[0-9a-f]{64}", node["machineKey"])
    assert datetime.fromisoformat(node["createdAt"]) == created
    # From 0.30 on, times are in the server's time zone, and their fractions have no trailing zeros.
    zone, digits = (r"\+02:00", range(1, 10)) if server.version >= "0.30" else ("Z", (3, 6, 9))
    match = re.fullmatch(rf"[^.]*\.(\d+){zone}", node["createdAt"])
    assert match is not None
    assert len(match[1]) in digits


def test_fields_of_a_user(server: Server) -> None:
    server.add_user("", "ann@example.com", provider="oidc")
    user, user_without_name = server.get("/api/v1/user")["users"]
    details = {"displayName", "email", "providerId", "provider", "profilePicUrl"}
    assert set(user) == {"id", "name", "createdAt"} | (details if server.version >= "0.24" else set())
    assert user["id"] == "1"
    assert user_without_name["name"] == value_for(server.version, {"0.23": "", "0.28": "ann@example.com"})


@fact({"0.23": [ZERO] * 2, "0.25": [None] * 2, "0.27": [ZERO] * 2, "0.28": [ZERO, None], "0.29": [None] * 2})
def expiry_of_an_untagged_and_a_tagged_node_that_never_expire(server: Server) -> list[str | None]:
    for tags in ((), TAGS):
        server.add_node("a1", user="svc", tags=tags)
    return [node["expiry"] for node in server.list_nodes()]


@fact({"0.23": ("svc", "svc"), "0.28": ("tagged-devices", "svc"), "0.29": ("tagged-devices", None)})
def user_of_a_tagged_node_in_a_list_and_alone(server: Server) -> tuple[Any, Any]:
    """Return the name of the user in the list of nodes, and in the response to a request for this node."""
    server.add_node("a1", user="svc", tags=TAGS)
    (in_list,), alone = server.list_nodes(), server.get("/api/v1/node/1")["node"]
    tags = value_for(server.version, {"0.23": "forcedTags", "0.28": "tags"})
    assert in_list[tags] == alone[tags] == [*TAGS]
    if server.version < "0.28":
        assert (in_list["validTags"], alone["validTags"]) == ([*TAGS] if server.version >= "0.24" else [], [])
    else:
        server.add_node("b1", user=None, tags=TAGS)
        assert server.list_nodes()[1]["preAuthKey"]["user"] is None
    return in_list["user"]["name"], (alone["user"] or {}).get("name")


@fact({"0.23": ("ann", True), "0.24": ("ann@example.com", True), "0.26": ("ann", True), "0.28": ("ann", False)})
def user_of_a_nodes_key_and_whether_its_secret_is_shown(server: Server) -> tuple[str, bool]:
    user = server.add_user("ann", "ann@example.com")
    key = server.create_key(user)
    server.add_node("a1", user=user, pre_auth_key=key)
    server.add_node("b1", user=user, registered_by="cli")
    by_key, by_cli = server.list_nodes()
    assert (by_cli["preAuthKey"], by_cli["registerMethod"]) == (None, "REGISTER_METHOD_CLI")
    node_key = by_key["preAuthKey"]
    assert (node_key["id"], node_key["used"]) == ("1", True)
    assert node_key["key"] in {key.key, f"{key.key[:23]}-***"}
    name = node_key["user"] if server.version < "0.26" else node_key["user"]["name"]
    return name, node_key["key"] == key.key


@fact({"0.23": [], "0.27": ["a1"]})
def nodes_after_deleting_id_0(server: Server) -> list[str]:
    """Before 0.27, the id 0 stands for the first node."""
    server.add_node("a1", user="svc")
    server.api().delete("/api/v1/node/0")
    return [node.name for node in server.nodes]


@fact({"0.23": False, "0.27": True})
def client_of_a_deleted_node_stays_connected(server: Server) -> bool:
    server.add_node("a1", user="svc")
    assert server.api().delete("/api/v1/node/1").json() == {}
    assert server.list_nodes() == []
    is_connected = server.online(1)
    with pytest.raises(NodeGoneError):
        server.connect(1)
    return is_connected


@pytest.mark.full
def test_list_larger_than_a_grpc_message_is_refused() -> None:
    server = Server("0.26.1")
    for number in range(6001):
        address = f"100.65.{number >> 8}.{number & 255}"
        server.add_node(f"n{number}", user="svc", registered_by="cli", addresses=(address,))
    response = server.api().get("/api/v1/node")
    resource_exhausted = 8
    assert (response.status_code, response.json()["code"]) == (429, resource_exhausted)


@fact({"0.23": False, "0.27.1": True, "0.29": False})
def expiry_of_a_node_is_lost_at_a_restart(server: Server) -> bool:
    server.expire_node(server.add_node("a1", user="svc").id)
    (node,) = server.list_nodes()
    assert datetime.fromisoformat(node["expiry"]).replace(microsecond=0) == NOON
    assert node["online"], "expired nodes stay connected"
    server.restart()
    return server.nodes[0].expires_at is None


# --- Pre-auth keys ------------------------------------------------------------------------------------


def test_fields_of_a_new_key(server: Server) -> None:
    key = server.post(KEYS, server.key_request(aclTags=TAGS))["preAuthKey"]
    assert set(key) == {
        "user", "id", "key", "reusable", "ephemeral", "used", "expiration", "createdAt", "aclTags",
    }  # fmt: skip
    assert datetime.fromisoformat(key["expiration"]) == NOON + timedelta(hours=1)
    assert key["aclTags"] == value_for(server.version, {"0.23": [], "0.24": [*TAGS]})
    assert server.keys[0].tags == TAGS
    formats = {"0.23": "[0-9a-f]{48}", "0.28": "hskey-auth-[-_0-9A-Za-z]{12}-[-_0-9A-Za-z]{64}"}
    assert re.fullmatch(value_for(server.version, formats), key["key"])
    assert key["key"] in server.secrets()


def test_key_without_a_requested_expiry_has_already_expired(server: Server) -> None:
    key = server.post(KEYS, server.key_request(expiration=...))["preAuthKey"]
    assert key["expiration"] == ZERO
    with pytest.raises(RegistrationRefusedError, match="expired"):
        server.register(key=key["key"], hostname="a1")


@fact({"0.23": (["1"], True), "0.28": (["1", "2"], False)})
def ids_of_listed_keys_and_whether_secrets_are_shown(server: Server) -> tuple[list[str], bool]:
    key = server.create_key("svc")
    server.add_user("ann")
    server.create_key("ann")
    if server.version < "0.28":
        assert server.api().get(KEYS).status_code == 500, "the request names no user"
    keys = server.get(f"{KEYS}?user={'svc' if server.version < '0.26' else '1'}")["preAuthKeys"]
    return [listed["id"] for listed in keys], keys[0]["key"] == key.key


def test_key_in_the_old_format_is_not_masked_after_an_upgrade() -> None:
    server = Server("0.27.1")
    key = server.create_key("svc")
    server.upgrade("0.28.0")
    assert server.get(KEYS)["preAuthKeys"][0]["key"] == key.key


@fact({"0.23": [200, 500, 500], "0.25": [200, 200, 500], "0.28": [200, 200, 200], "0.30": [200, 200, 404]})
def expiring_a_key_twice_and_an_unknown_key(server: Server) -> list[int]:
    key = server.create_key("svc")
    bodies = [server.expire_request(requested) for requested in (key, key, None)]
    statuses = [server.api().post(f"{KEYS}/expire", json=body).status_code for body in bodies]
    with pytest.raises(RegistrationRefusedError, match="expired"):
        server.register(key=key.key, hostname="a1")
    if server.version < "0.28":
        server.add_user("ann")
        other = server.expire_request(server.create_key("ann"))
        assert server.api().post(f"{KEYS}/expire", json=other).status_code == 500
    return statuses


@pytest.mark.parametrize("version", [version for version in VERSIONS if version >= "0.28"])
def test_restart_restores_the_stored_key_of_a_node_and_removes_a_deleted_key(version: str) -> None:
    """Of these releases, only 0.29.3 stores the key of a later login in its database."""
    server = Server(version)
    node = server.register_new()
    server.register_again(node, server.create_key("svc").key)
    assert server.list_nodes()[0]["preAuthKey"]["id"] == "2"
    server.restart()
    stored_id = value_for(version, {"0.28": "1", "0.29.3": "2", "0.30": "1"})
    assert server.list_nodes()[0]["preAuthKey"]["id"] == stored_id
    server.delete_key(int(stored_id))
    assert server.list_nodes()[0]["preAuthKey"]["id"] == stored_id
    server.restart()
    assert server.list_nodes()[0]["preAuthKey"] is None


# --- Names --------------------------------------------------------------------------------------------


@fact(
    {
        "0.23": ["Grafana.Example.com", "grafana.example.com", "My_Host", "my-host", "app.local", "app.local"],
        "0.24": ["Grafana.Example.com", "grafana.example.com", "My_Host", "myhost", "app.local", "app.local"],
        "0.27": ["grafana.example.com", "grafana.example.com", "invalid-", "invalid-", "app.local", "app.local"],
        "0.29": ["Grafana.Example.com", "grafana-example-com", "My_Host", "my-host", "app.local", "app"],
    }
)
def names_and_given_names(server: Server) -> list[str]:
    nodes = [server.add_node(name, user="svc") for name in ("Grafana.Example.com", "My_Host", "app.local")]
    return [re.sub("(?<=invalid-).*", "", name) for node in nodes for name in (node.name, node.given_name)]


@fact({"0.23": "aaa", "0.24": "refused", "0.27": "inv", "0.29": "aaa"})
def hostname_of_more_than_63_characters(server: Server) -> str:
    """Return the first three letters of the node's name, or "refused"."""
    with suppress(RegistrationRefusedError):
        return server.register(key=server.create_key("svc").key, hostname=f"{'a' * 40}.{'b' * 40}").name[:3]
    assert (server.nodes, server.keys[0].used) == ([], False)
    return "refused"


@fact({"0.23": "a.example.com-xxxxxxxx", "0.29": "a-example-com-1"})
def given_name_of_a_second_node(server: Server) -> str:
    first, second, third = (server.add_node("a.example.com", user="svc") for _ in range(3))
    assert first.name == second.name == third.name
    assert len({first.given_name, second.given_name, third.given_name}) == 3
    server.delete_node(first.id)
    assert server.node(second.id) == second
    return re.sub("-[a-z0-9]{8}$", "-xxxxxxxx", second.given_name)


# --- Registration -------------------------------------------------------------------------------------


def test_registered_machine_is_online_when_it_connects(server: Server) -> None:
    node = server.register_new(tags=TAGS)
    assert (node.name, node.tags) == ("a1", TAGS)
    assert not server.online(node.id)
    server.connect(node.id)
    assert server.online(node.id)
    for key, reason in ((server.keys[0].key, "used"), ("none", "AuthKey not found|invalid pre auth key")):
        with pytest.raises(RegistrationRefusedError, match=reason):
            server.register(key=key, hostname="a1")


@fact({"0.23": True, "0.25": False})
def reusable_key_becomes_used(server: Server) -> bool:
    key = server.create_key("svc", reusable=True)
    first, second = (server.register(key=key.key, hostname="a1") for _ in range(2))
    server.delete_node(second.id)
    again = server.register_again(second, key.key)
    assert isinstance(again, Node)
    assert (first.id, again.id, again.machine_key) == (second.id - 1, second.id + 1, second.machine_key)
    assert again.addresses != second.addresses
    return server.keys[0].used


REFUSED: Final = {"used": "authkey already used", "expired": "authkey expired", "unknown": "invalid pre auth key"}


@fact(
    {
        "0.23": {"used": 1, "expired": 1, "unknown": 1},
        "0.27.0": REFUSED,
        "0.27.1": {**REFUSED, "used": 1},
        "0.28": {"used": 1, "expired": 1, "unknown": REFUSED["unknown"]},
    }
)
def login_of_a_node_with_its_used_key_an_expired_and_an_unknown_key(server: Server) -> dict[str, int | str]:
    """Return the id of the node, or the error message, for each of the three keys."""
    node = server.register_new()
    keys = {
        "used": server.keys[0].key,
        "expired": server.create_key("svc", expires_in=timedelta(0)).key,
        "unknown": "x",
    }
    results = {name: server.register_again(node, key) for name, key in keys.items()}
    return {name: result.id if isinstance(result, Node) else result for name, result in results.items()}


@fact({"0.23": "a1", "0.24": "b1"})
def name_after_a_login_with_another_hostname(server: Server) -> str:
    node = server.register_new()
    again = server.register_again(node, None, hostname="b1")
    assert isinstance(again, Node)
    server.delete_node(node.id)
    assert server.register_again(node, None) == "node must log in"
    return again.name


@fact({"0.23": 1, "0.25": 2})
def id_of_an_expired_node_after_a_login_with_the_key_of_another_user(server: Server) -> int:
    server.add_user("ann")
    node = server.register_new()
    server.expire_node(node.id)
    again = server.register_again(node, server.create_key("ann").key)
    assert isinstance(again, Node)
    assert again.user_id == 2
    return again.id


@fact({"0.23": [False, False], "0.28": [False, True], "0.29.3": [False, False], "0.30": [False, True]})
def untagged_and_tagged_node_stay_expired_after_a_login(server: Server) -> list[bool]:
    stay_expired = []
    for tags in ((), TAGS):
        node = server.register_new(tags=tags)
        server.expire_node(node.id)
        again = server.register_again(node, server.create_key("svc", tags=tags).key)
        assert isinstance(again, Node)
        assert again.id == node.id
        assert server.keys[-1].used
        stay_expired.append(again.expires_at is not None)
    return stay_expired


@fact({"0.23": "", "0.27.0": "used", "0.28": "", "0.29.3": "used", "0.30": ""})
def error_of_a_login_of_a_tagged_node_with_another_used_key(server: Server) -> str:
    node = server.register_new(tags=TAGS)
    other = server.create_key("svc", tags=TAGS)
    server.register(key=other.key, hostname="b1")
    again = server.register_again(node, other.key)
    return "" if isinstance(again, Node) else again.removeprefix("authkey already ")


@fact({"0.23": False, "0.27.1": True, "0.28": False, "0.29.3": True, "0.30": False})
def expired_tagged_node_can_be_used_again_after_a_login_with_its_used_key(server: Server) -> bool:
    node = server.register_new(tags=TAGS)
    server.expire_node(node.id)
    again = server.register_again(node, server.keys[-1].key)
    return isinstance(again, Node) and again.expires_at is None


@fact({"0.23": ("tag:new",), "0.28": TAGS, "0.29.3": ("tag:new",), "0.30": TAGS})
def tags_after_a_login_with_another_key(server: Server) -> tuple[str, ...]:
    node = server.register_new(tags=TAGS)
    server.expire_node(node.id)
    again = server.register_again(node, server.create_key("svc", tags=("tag:new",)).key)
    assert isinstance(again, Node)
    return again.tags


def test_upgrade_to_0_29_3_removes_the_expiry_of_tagged_nodes() -> None:
    server = Server("0.29.2")
    for tags in ((), TAGS):
        server.expire_node(server.add_node("a1", user="svc", tags=tags).id)
    server.upgrade("0.29.3")
    assert [node.expires_at is None for node in server.nodes] == [False, True]


@pytest.mark.parametrize("version", [version for version in VERSIONS if version >= "0.28"])
def test_logins_with_a_key_that_has_tags_and_no_user(version: str) -> None:
    """0.28 creates another node at every login. Later releases keep the node, and can make an untagged node tagged."""
    server = Server(version)
    key = server.create_key(None, tags=TAGS, reusable=True)
    node = server.register(key=key.key, hostname="a1")
    again = server.register_again(node, key.key)
    assert isinstance(again, Node)
    assert again.id == value_for(version, {"0.28": 2, "0.29": 1})
    used = server.create_key(None, tags=TAGS).key
    refused = server.register_again(server.register(key=used, hostname="b1"), used)
    assert (refused == "authkey already used") == (version < "0.29")
    if version >= "0.29":
        untagged = server.register_new()
        tagged = server.register_again(untagged, server.create_key(None, tags=TAGS).key)
        assert isinstance(tagged, Node)
        assert (tagged.id, tagged.tags, tagged.user_id) == (untagged.id, TAGS, None)


@fact({"0.23": (NOON, 2), "0.25": (None, 3), "0.27": (NOON, 2)})
def creation_time_after_a_login_and_the_next_address(server: Server) -> tuple[datetime | None, int]:
    """Return the creation time of a node that logged in, and the last number of the address of the next new node."""
    node = server.register_new()
    server.expire_node(node.id)
    again = server.register_again(node, server.create_key("svc").key)
    assert isinstance(again, Node)
    assert again.addresses == node.addresses
    created = server.list_nodes()[0]["createdAt"]
    created_at = None if created == ZERO else datetime.fromisoformat(created).replace(microsecond=0)
    return created_at, int(server.add_node("b1", user="svc").address.rpartition(".")[2])


# --- Sessions and addresses ---------------------------------------------------------------------------


@fact({"0.23": False, "0.27": True})
def node_is_online_right_after_it_disconnected(server: Server) -> bool:
    server.add_node("a1", user="svc")
    server.disconnect(1)
    is_online = server.online(1)
    server.clock += timedelta(seconds=10)
    assert not server.list_nodes()[0]["online"]
    return is_online


def test_node_that_disappears_is_offline_after_15_minutes() -> None:
    server = Server()
    server.add_node("a1", user="svc")
    server.disconnect(1, silently=True)
    server.clock += timedelta(minutes=14)
    assert server.online(1)
    server.clock += timedelta(minutes=2)
    assert not server.online(1)


def test_addresses_of_deleted_nodes_are_assigned_after_a_restart(server: Server) -> None:
    first, _, third = (server.add_node(f"a{number}", user="svc") for number in range(3))
    server.delete_node(first.id)
    server.delete_node(third.id)
    assert server.add_node("b1", user="svc").address == "100.64.0.4"
    server.restart()
    assert not any(node["online"] for node in server.list_nodes())
    assert server.add_node("b2", user="svc").address == first.address
    assert server.add_node("b3", user="svc").address == third.address
    assert [node.id for node in server.nodes] == [2, 4, 5, 6]


def test_restored_database_assigns_ids_again() -> None:
    server = Server()
    backup = server.backup()
    before = server.add_node("a1", user="svc")
    server.restore(backup)
    assert server.nodes == []
    after = server.add_node("b1", user="svc")
    assert after.id == before.id
    assert after.machine_key != before.machine_key


def test_upgraded_server_behaves_like_the_new_release() -> None:
    server = Server("0.25.1")
    server.add_node("a1", user="svc", tags=TAGS)
    assert server.api().get("/version").status_code == 404
    server.upgrade("0.29.2")
    assert server.get("/version")["version"] == "v0.29.2"
    assert server.list_nodes()[0]["tags"] == [*TAGS]
    assert server.get("/api/v1/node/1")["node"]["user"] is None


def test_stale_response_has_the_state_before_the_last_change() -> None:
    server = Server()
    server.add_node("a1", user="svc")
    server.api().delete("/api/v1/node/1")
    server.faults.add(faults.stale())
    assert [node["id"] for node in server.list_nodes()] == ["1"]
    assert server.list_nodes() == []
