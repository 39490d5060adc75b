"""Send the same requests to a real and a simulated Headscale in the same state, and compare the responses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from lifecycle.clients.headscale import dialect
from tests.real.differences import differences, distinct
from tests.real.pair import ServerPair
from tests.real.programs import TIMEOUT_S, Release
from tests.real.server import HeadscaleServer
from tests.real.workload import OTHER_USER, USER
from tests.simulators.headscale import HeadscaleSimulator

EXPIRATION: Final = "2030-01-01T00:00:00Z"
UNKNOWN_ID: Final = "424242"


@dataclass(frozen=True, slots=True)
class Request:
    """A request to both servers."""

    method: str
    path: str
    body: Any = None
    content: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    key: str | None = "valid"
    """"valid" or "wrong" = an API key; other text = the value of the Authorization header; None = no header."""

    def __str__(self) -> str:
        key = "" if self.key == "valid" else f", API key: {self.key}"
        body = self.content if self.body is None else json.dumps(self.body)
        return f"{self.method} {self.path} {body or ''}{key}".rstrip()


@dataclass(frozen=True, slots=True)
class Summary:
    """The parts of a response that have to be equal."""

    status: int
    content_type: str
    shape: Any


def _send(http: httpx.Client, request: Request, api_key: str) -> httpx.Response:
    headers = dict(request.headers)
    match request.key:
        case "valid":
            headers |= _authorization(api_key)
        case "wrong":
            headers |= _authorization(f"{api_key[:-3]}abc")
        case str(text):
            headers["Authorization"] = text
    return http.request(request.method, request.path, json=request.body, content=request.content, headers=headers)


def _authorization(api_key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {api_key}"}


@pytest.fixture
def servers(release: Release, temporary_folder: Path) -> Iterator[ServerPair]:
    """A real server and a simulator of its release. Both have a plain node, a node with a tag and an expired node."""
    with ExitStack() as stack:
        servers = ServerPair(release, temporary_folder, stack)
        servers.register("app.example.com")
        servers.register("tagged.example.com", "tag:web")
        servers.register("expired.example.com")
        servers.server.expire_node("3")
        servers.simulator.expire_node(3)
        yield servers


def summary(response: httpx.Response) -> Summary:
    """Return the parts of a response that have to be equal."""
    kind = response.headers.get("content-type", "")
    return Summary(response.status_code, kind, shape_of(response.json()) if "json" in kind else response.text)


def shape_of(value: Any) -> Any:
    """Return a JSON value with texts such as times and keys replaced by their kind, and without repeated list items."""
    match value:
        case {"code": int(), "message": str(message)}:
            # Messages may differ, except the words "not found", on which clients depend.
            return {**value, "message": "not found" in message}
        # The format of errors in Headscale 0.30. Of the items of `errors`, only the names of the fields are compared.
        case {"title": str(), "status": int()}:
            return value | {"detail": "text", "errors": [sorted(error) for error in value.get("errors", ())]}
        case dict():
            return {name: shape_of(item) for name, item in sorted(value.items())}
        case list():
            return distinct(map(shape_of, value))
        case str():
            return _kind_of(value)
    return value


# If a text matches several patterns, the last one is its kind.
_TEXT_KINDS: Final = (
    ("year 1", r"0001-01-01T00:00:00Z"),
    ("instant", r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)"),
    ("48 hex digits", r"[0-9a-f]{48}"),
    ("key", r"hskey-auth-.{12}-.{64}"),
    ("hex key", r"hskey-auth-[0-9a-f]{12}-[0-9a-f]{64}"),
    ("masked key", r"hskey-auth-.{12}-\*\*\*"),
    ("machine key", r"mkey:[0-9a-f]{64}"),
    ("node key", r"nodekey:[0-9a-f]{64}"),
    ("disco key", r"discokey:[0-9a-f]{64}"),
)


def _kind_of(text: str) -> str:
    kinds = [name for name, pattern in _TEXT_KINDS if re.fullmatch(pattern, text)]
    return f"<{kinds[-1]}>" if kinds else text


def _create_key(**body: Any) -> Request:
    return Request("POST", "/api/v1/preauthkey", body=body)


API: Final = "/api/v1"

REQUESTS: Final = [
    Request("GET", "/health", key=None),
    Request("GET", f"{API}/user"),
    Request("GET", f"{API}/node"),
    *(
        Request("GET", f"{API}/node/{path}")
        for path in ("1", "2", UNKNOWN_ID, "0", "abc", "-1", "99999999999999999999", "1/nothing")
    ),
    Request("PUT", f"{API}/node"),
    Request("DELETE", f"{API}/node"),
    *(Request("DELETE", f"{API}/node/{node_id}") for node_id in (UNKNOWN_ID, "abc")),
    Request("GET", f"{API}/preauthkey"),
    *(Request("GET", f"{API}/preauthkey?user={user}") for user in (USER, "1", "2", OTHER_USER, "nobody", "4242")),
    *(
        _create_key(user=user, expiration=EXPIRATION)
        for user in (USER, "1", 1, "4242", "nobody", "", "0", None, ["1"], 1.5, "-1")
    ),
    # Each release identifies a user either by the name or by the id, and refuses the other.
    *(
        _create_key(user=user, **options)
        for user in (USER, "1")
        for options in (
            {"expiration": EXPIRATION, "reusable": True, "ephemeral": True, "aclTags": ["tag:web", "tag:db"]},
            {"aclTags": ["web"], "expiration": EXPIRATION},
            {"expiration": EXPIRATION, "acl_tags": ["tag:web"]},
            {},
        )
    ),
    _create_key(expiration=EXPIRATION),
    _create_key(expiration=EXPIRATION, aclTags=["tag:web"]),
    *(_create_key(user="1", aclTags=tags, expiration=EXPIRATION) for tags in (["tag:Web"], ["tag:a b"], "tag:web")),
    *(
        _create_key(user="1", expiration=expiration)
        for expiration in (
            *(None, "", "tomorrow", 1893456000, "2001-01-01T00:00:00Z", "2030-01-01T00:00:00"),
            *("2030-01-01T00:00:00+02:00", "2030-01-01T00:00:00.123456789Z"),
        )
    ),
    *(_create_key(user="1", expiration=EXPIRATION, reusable=reusable) for reusable in ("true", 1, None)),
    _create_key(user="1", expiration=EXPIRATION, nothing=True),
    Request("POST", f"{API}/preauthkey"),
    *(
        Request("POST", f"{API}/preauthkey", content=content)
        for content in ("{", "[]", "null", '{"user":"1","user":"2"}')
    ),
    *(
        Request("POST", f"{API}/preauthkey", content='{"user":"1"}', headers={"Content-Type": content_type})
        for content_type in ("application/x-www-form-urlencoded", "text/plain")
    ),
    *(Request("POST", f"{API}/preauthkey/expire", body={"id": key}) for key in ("1", 1, "abc", UNKNOWN_ID, "0")),
    Request("POST", f"{API}/preauthkey/expire", body={}),
    Request("POST", f"{API}/preauthkey/expire"),
    *(Request("POST", f"{API}/preauthkey/expire", body={"user": user, "key": "nothing"}) for user in ("1", USER)),
    # The requests above have created keys.
    Request("GET", f"{API}/node"),
    Request("GET", f"{API}/preauthkey"),
    Request("GET", f"{API}/preauthkey?user=1"),
    *(
        Request(method, path, key=key)
        for key in (None, "wrong", "Bearer", "Bearer x", "Bearer a.b", "bearer x", "Basic abc", "Token")
        for method, path in (("GET", f"{API}/node"), ("POST", f"{API}/preauthkey"))
    ),
    *(
        Request(method, path, key=key)
        for key in ("valid", None)
        for method, path in (
            ("GET", f"{API}/nothing"),
            ("POST", f"{API}/nothing"),
            ("GET", f"{API}"),
            ("GET", f"{API}/"),
            ("GET", "/api"),
            ("GET", "/api/v3/node"),
            ("GET", "/nothing"),
            ("POST", "/nothing"),
            ("GET", "/client/v4/zones"),
        )
    ),
    Request("DELETE", f"{API}/node/2"),
    Request("GET", f"{API}/node/2"),
    Request("DELETE", f"{API}/node/2"),
]


def test_real_and_simulated_server_send_the_same_responses(servers: ServerPair) -> None:
    different = []
    with httpx.Client(base_url=servers.server.url, timeout=TIMEOUT_S) as real_http:
        for request in REQUESTS:
            real = summary(_send(real_http, request, servers.server.api_key))
            simulated = summary(_send(servers.simulated_http, request, servers.simulator.api_key))
            if real != simulated:
                different.append(str(request))
                different += (f"    {line}" for line in differences(asdict(real), asdict(simulated)))
    if different:
        pytest.fail("\n".join(different), pytrace=False)


def test_same_api_dialect_is_detected_on_the_real_and_the_simulated_server(server: HeadscaleServer) -> None:
    """A client detects the dialect (the variant of the API) from the version, or from the paths in the OpenAPI file."""
    simulator = HeadscaleSimulator(server.release.simulator_version)
    transport = httpx.WSGITransport(app=simulator)
    with httpx.Client(transport=transport, base_url="http://headscale.test") as simulated_http:
        for path in ("/version", "/swagger/v1/openapiv2.json", "/api/v1/openapi.json"):
            real = server.request("GET", path)
            simulated = simulated_http.get(path, headers=_authorization(simulator.api_key))
            assert (simulated.status_code, simulated.headers.get("content-type")) == (
                real.status_code,
                real.headers.get("content-type"),
            ), path
            if real.is_error or "json" not in real.headers["content-type"]:
                continue
            if path == "/version":
                assert simulated.json().keys() == real.json().keys()
                continue
            # The simulator has only some of the paths.
            assert simulated.json()["paths"].keys() <= real.json()["paths"].keys()
            detect = dialect.dialect_of_description
            assert detect(simulated.json()) == detect(real.json())
