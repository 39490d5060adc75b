"""The simulators answer and refuse as the services do, release by release."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.simulators import faults
from tests.simulators.cloudflare import ApiError, CloudflareSimulator, refusal
from tests.simulators.dialects import VERSIONS
from tests.simulators.headscale import HeadscaleSimulator, Node, NodeGoneError, RegistrationRefusedError
from tests.simulators.serve import serve
from tests.simulators.vpn_client import KeyFileUnusableError, VpnClient, put_address

NOON = datetime(2026, 8, 1, 12, 0, tzinfo=UTC)
ZERO = "0001-01-01T00:00:00Z"

BEFORE_0_25 = ("0.23.0", "0.24.3")
BEFORE_0_26 = (*BEFORE_0_25, "0.25.1")
BEFORE_0_27 = (*BEFORE_0_26, "0.26.1")
BEFORE_0_28 = (*BEFORE_0_27, "0.27.0", "0.27.1")
BEFORE_0_29 = (*BEFORE_0_28, "0.28.0")
BEFORE_0_30 = (*BEFORE_0_29, "0.29.2")

every_version = pytest.mark.parametrize("version", VERSIONS)


def since(*older: str) -> tuple[str, ...]:
    """The versions that are not among the older ones."""
    return tuple(version for version in VERSIONS if version not in older)


class Clock:
    """Stands still until told."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **duration: float) -> None:
        """Let time go by."""
        self.now += timedelta(**duration)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def headscale(version: str, clock: Clock | None = None, **settings: Any) -> HeadscaleSimulator:
    """A server with one user."""
    sim = HeadscaleSimulator(version, now=clock, **settings)
    sim.add_user("svc")
    return sim


def api(sim: HeadscaleSimulator, *, key: str | None = None) -> httpx.Client:
    """A client in this process."""
    return httpx.Client(
        transport=httpx.WSGITransport(app=sim),
        base_url="http://headscale.test",
        headers={"Authorization": f"Bearer {sim.api_key if key is None else key}"},
    )


def key_request(version: str, **fields: Any) -> dict[str, Any]:
    """What creates a pre-auth key of the only user."""
    user = "svc" if version in BEFORE_0_26 else "1"
    return {"user": user, "expiration": "2026-08-01T13:00:00Z", **fields}


def listed(sim: HeadscaleSimulator) -> list[dict[str, Any]]:
    """The nodes as the list has them."""
    nodes: list[dict[str, Any]] = api(sim).get("/api/v1/node").json()["nodes"]
    return nodes


class TestHeadscaleFindingOut:
    """What tells one release from another."""

    @every_version
    def test_version(self, version: str) -> None:
        answer = api(headscale(version), key="none").get("/version")
        if version in BEFORE_0_27:
            assert (answer.status_code, answer.content) == (404, b"")
        else:
            assert answer.json()["version"] == f"v{version}"

    def test_own_build(self) -> None:
        sim = HeadscaleSimulator("0.28.0", reported_version="dev")
        assert api(sim).get("/version").json()["version"] == "dev"

    @every_version
    def test_fingerprints(self, version: str) -> None:
        client = api(headscale(version), key="none")
        answer = client.get("/swagger/v1/openapiv2.json")
        if version == "0.30.0":
            assert answer.status_code == 404
            assert "json" in client.get("/api/v1/openapi.json").headers["content-type"]
            return
        paths, definitions = answer.json()["paths"], answer.json()["definitions"]
        create = definitions["v1CreatePreAuthKeyRequest"]["properties"]
        assert "/api/v1/machine" not in paths
        assert (definitions["v1User"]["properties"]["id"].get("format") == "uint64") == (version != "0.23.0")
        assert (create["user"].get("format") == "uint64") == (version not in BEFORE_0_26)
        assert ("/api/v1/routes" in paths) == (version in BEFORE_0_26)
        assert ("/api/v1/health" in paths) == (version not in BEFORE_0_27)
        assert ("delete" in paths["/api/v1/preauthkey"]) == (version not in BEFORE_0_28)
        assert ("tags" in definitions["v1Node"]["properties"]) == (version not in BEFORE_0_28)
        assert ("/api/v1/auth/register" in paths) == (version == "0.29.2")

    def test_the_api_about_machines(self) -> None:
        client = api(HeadscaleSimulator("0.22.3"))
        assert "/api/v1/machine" in client.get("/swagger/v1/openapiv2.json").json()["paths"]
        assert client.get("/api/v1/machine").json() == {"machines": []}
        assert client.get("/api/v1/node").status_code == 404

    @every_version
    def test_unknown_path(self, version: str) -> None:
        answer = api(headscale(version)).get("/nowhere")
        status, text = {
            "0.28.0": (200, "<html"),
            "0.29.2": (404, "404 page not found"),
            "0.30.0": (404, "404 page not found"),
        }.get(version, (404, ""))
        assert answer.status_code == status
        assert text in answer.text
        assert "json" not in answer.headers.get("content-type", "")

    @every_version
    def test_health(self, version: str) -> None:
        client = api(headscale(version))
        assert client.get("/health").json() == {"status": "pass"}
        known = client.get("/api/v1/health").status_code == 200
        assert known == (version not in BEFORE_0_27)

    @every_version
    def test_wrong_method(self, version: str) -> None:
        answer = api(headscale(version)).delete("/api/v1/node")
        assert answer.status_code == (405 if version == "0.30.0" else 501)


class TestHeadscaleKeys:
    """Who gets in."""

    @every_version
    @pytest.mark.parametrize("header", [{}, {"Authorization": "Basic abc"}])
    def test_no_key(self, version: str, header: dict[str, str]) -> None:
        sim = headscale(version)
        with httpx.Client(transport=httpx.WSGITransport(app=sim), base_url="http://headscale.test") as client:
            answer = client.get("/api/v1/node", headers=header)
        assert answer.status_code == 401
        assert "Unauthorized" in answer.text

    @every_version
    def test_wrong_key(self, version: str) -> None:
        """Up to 0.26 that is a 500, which is no fault of the server."""
        answer = api(headscale(version), key="abc.def").get("/api/v1/node")
        assert answer.status_code == (500 if version in BEFORE_0_27 else 401)
        if version == "0.30.0":
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json() == {"title": "Unauthorized", "status": 401, "detail": "Unauthorized"}
        else:
            assert answer.text == "Unauthorized"

    @every_version
    def test_expired_key(self, version: str) -> None:
        sim = headscale(version)
        old = sim.api_key
        new = sim.rotate_api_key()
        assert api(sim, key=old).get("/api/v1/node").status_code == 401
        assert api(sim, key=new).get("/api/v1/node").status_code == 200
        sim.revoke_api_key(delete=True)
        assert api(sim, key=new).get("/api/v1/node").status_code == (500 if version in BEFORE_0_27 else 401)

    @every_version
    def test_masked(self, version: str) -> None:
        sim = headscale(version)
        (shown,) = api(sim).get("/api/v1/apikey").json()["apiKeys"]
        assert sim.api_key not in shown["prefix"]
        assert shown["prefix"].endswith("***") == (version not in BEFORE_0_28)


class TestHeadscaleNodes:
    """What a node looks like."""

    @every_version
    def test_shape(self, version: str, clock: Clock) -> None:
        sim = headscale(version, clock)
        sim.add_node("grafana.example.com", user="svc")
        (node,) = listed(sim)
        tags = {"forcedTags", "validTags", "invalidTags"} if version in BEFORE_0_28 else {"tags"}
        routes = set() if version in BEFORE_0_26 else {"approvedRoutes", "availableRoutes", "subnetRoutes"}
        assert set(node) == tags | routes | {
            "id", "machineKey", "nodeKey", "discoKey", "ipAddresses", "name", "user", "lastSeen", "expiry",
            "preAuthKey", "createdAt", "registerMethod", "givenName", "online",
        }  # fmt: skip
        assert node["id"] == "1"
        assert node["name"] == "grafana.example.com"
        assert node["registerMethod"] == "REGISTER_METHOD_AUTH_KEY"
        assert node["online"] is True
        assert node["ipAddresses"] == ["100.64.0.1", "fd7a:115c:a1e0::1"]
        assert re.fullmatch("mkey:[0-9a-f]{64}", node["machineKey"])

    @every_version
    def test_user_shape(self, version: str) -> None:
        (user,) = api(headscale(version)).get("/api/v1/user").json()["users"]
        details = {"displayName", "email", "providerId", "provider", "profilePicUrl"}
        assert set(user) == {"id", "name", "createdAt"} | (set() if version == "0.23.0" else details)
        assert user["id"] == "1"

    @every_version
    def test_times(self, version: str, clock: Clock) -> None:
        sim = headscale(version, clock)
        created = sim.add_node("a1", user="svc").created_at
        (node,) = listed(sim)
        assert datetime.fromisoformat(node["createdAt"]) == created
        assert node["createdAt"].endswith("+02:00" if version == "0.30.0" else "Z")
        fraction = re.fullmatch(r"[^.]*\.(\d+)(Z|\+02:00)", node["createdAt"])
        assert fraction is not None
        assert len(fraction[1]) in (range(1, 10) if version == "0.30.0" else (3, 6, 9))

    @every_version
    @pytest.mark.parametrize("tags", [(), ("tag:svc",)])
    def test_never_expires(self, version: str, tags: tuple[str, ...]) -> None:
        sim = headscale(version)
        sim.add_node("a1", user="svc", tags=tags)
        zero = version in (*BEFORE_0_25, "0.27.0", "0.27.1") or (version == "0.28.0" and not tags)
        assert listed(sim)[0]["expiry"] == (ZERO if zero else None)

    @every_version
    def test_tagged(self, version: str) -> None:
        sim = headscale(version)
        sim.add_node("a1", user="svc", tags=("tag:svc",))
        (in_list,) = listed(sim)
        alone = api(sim).get("/api/v1/node/1").json()["node"]
        tags = "forcedTags" if version in BEFORE_0_28 else "tags"
        assert in_list[tags] == alone[tags] == ["tag:svc"]
        assert in_list["user"]["name"] == ("svc" if version in BEFORE_0_28 else "tagged-devices")
        if version in BEFORE_0_29:
            assert alone["user"]["name"] == "svc"
        else:
            assert alone["user"] is None
        if version in BEFORE_0_28:
            assert in_list["validTags"] == ([] if version == "0.23.0" else ["tag:svc"])
            assert alone["validTags"] == []

    @pytest.mark.parametrize("version", since(*BEFORE_0_28))
    def test_tags_and_no_user(self, version: str) -> None:
        sim = headscale(version)
        sim.add_node("a1", user=None, tags=("tag:svc",))
        assert listed(sim)[0]["preAuthKey"]["user"] is None
        assert api(sim).get("/api/v1/node/1").json()["node"]["user"] is None

    @every_version
    def test_user_filter(self, version: str) -> None:
        sim = headscale(version)
        sim.add_user("ann")
        sim.add_node("a1", user="svc")
        sim.add_node("b1", user="svc", tags=("tag:svc",))
        sim.add_node("c1", user="ann")
        shown = api(sim).get("/api/v1/node", params={"user": "svc"}).json()["nodes"]
        assert [node["name"] for node in shown] == (["a1", "b1"] if version in BEFORE_0_29 else ["a1"])

    @every_version
    @pytest.mark.parametrize("name", ["nobody", "tagged-devices"])
    def test_filter_by_unknown_user(self, version: str, name: str) -> None:
        answer = api(headscale(version)).get("/api/v1/node", params={"user": name})
        assert answer.status_code == (404 if version == "0.30.0" else 500)
        assert "user not found" in answer.text

    @every_version
    def test_the_key_it_came_with(self, version: str) -> None:
        """Up to 0.27 every list shows the secret."""
        sim = headscale(version)
        secret = sim.create_key("svc")
        sim.add_node("a1", user="svc", pre_auth_key=secret)
        shown = listed(sim)[0]["preAuthKey"]
        assert shown["id"] == "1"
        assert shown["used"] is True
        if version in BEFORE_0_28:
            assert shown["key"] == secret.key
        else:
            assert shown["key"] == f"{secret.key[:23]}-***"
        assert shown["user"] == "svc" if version in BEFORE_0_26 else shown["user"]["name"] == "svc"

    @pytest.mark.parametrize("version", ["0.24.3", "0.25.1"])
    def test_email_instead_of_name(self, version: str) -> None:
        sim = HeadscaleSimulator(version)
        sim.add_node("a1", user=sim.add_user("svc", "svc@example.com"))
        assert listed(sim)[0]["preAuthKey"]["user"] == "svc@example.com"

    @every_version
    @pytest.mark.parametrize("registered_by", ["cli", "oidc"])
    def test_no_key(self, version: str, registered_by: Any) -> None:
        sim = headscale(version)
        sim.add_node("a1", user="svc", registered_by=registered_by)
        (node,) = listed(sim)
        assert node["preAuthKey"] is None
        assert node["registerMethod"] == f"REGISTER_METHOD_{registered_by.upper()}"

    @every_version
    @pytest.mark.parametrize("method", ["GET", "DELETE"])
    def test_unknown(self, version: str, method: str) -> None:
        answer = api(headscale(version)).request(method, "/api/v1/node/99")
        if version in BEFORE_0_27:
            assert answer.status_code == 500
            assert answer.json() == {"code": 2, "message": "record not found", "details": []}
        elif version in BEFORE_0_30:
            assert answer.status_code == 404
            assert answer.json() == {"code": 5, "message": "node not found", "details": []}
        else:
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["detail"] == "node not found"

    @every_version
    @pytest.mark.parametrize("action", ["expire", "rename/b"])
    def test_unknown_to_change(self, version: str, action: str) -> None:
        answer = api(headscale(version)).post(f"/api/v1/node/99/{action}")
        assert answer.status_code == (404 if version == "0.30.0" else 500)

    @every_version
    def test_id_that_is_no_number(self, version: str) -> None:
        for answer in (
            api(headscale(version)).get("/api/v1/node/abc"),
            api(headscale(version)).delete("/api/v1/node/1%20"),
            api(headscale(version)).post("/api/v1/node/-1/expire"),
        ):
            assert answer.status_code == 400

    @every_version
    def test_id_0(self, version: str) -> None:
        """Up to 0.26 that deletes the first node there is."""
        sim = headscale(version)
        sim.add_node("a1", user="svc")
        api(sim).delete("/api/v1/node/0")
        assert (not sim.nodes) == (version in BEFORE_0_27)

    @every_version
    def test_delete(self, version: str) -> None:
        sim = headscale(version)
        sim.add_node("a1", user="svc")
        assert api(sim).delete("/api/v1/node/1").json() == {}
        assert listed(sim) == []

    def test_list_too_large(self) -> None:
        """More than one gRPC message can carry."""
        sim = headscale("0.26.1")
        for number in range(6001):
            address = f"100.65.{number >> 8}.{number & 255}"
            sim.add_node(f"n{number}", user="svc", registered_by="cli", addresses=(address,))
        answer = api(sim).get("/api/v1/node")
        assert answer.status_code == 429
        assert answer.json()["code"] == 8


class TestHeadscaleExpiring:
    """Nodes made to log in again."""

    @every_version
    def test_now(self, version: str, clock: Clock) -> None:
        sim = headscale(version, clock)
        sim.add_node("a1", user="svc")
        node = api(sim).post("/api/v1/node/1/expire").json()["node"]
        assert datetime.fromisoformat(node["expiry"]).replace(microsecond=0) == NOON
        assert sim.online(1), "expiring disconnects nobody"
        assert node["online"] is (version not in BEFORE_0_27)

    @every_version
    def test_later(self, version: str, clock: Clock) -> None:
        """Asked for in a query or a body, and what a release does not know means now."""
        sim = headscale(version, clock)
        sim.add_node("a1", user="svc")
        later = "2026-09-01T00:00:00Z"
        if version == "0.30.0":
            api(sim).post("/api/v1/node/1/expire", json={"expiry": later})
        else:
            api(sim).post("/api/v1/node/1/expire", params={"expiry": later}, json={"expiry": "2026-10-01T00:00:00Z"})
        node = sim.node(1)
        assert node is not None
        assert node.expires_at == (NOON if version in BEFORE_0_27 else datetime(2026, 9, 1, tzinfo=UTC))

    def test_no_more(self) -> None:
        sim = headscale("0.29.2")
        sim.add_node("a1", user="svc", expires_at=NOON)
        node = api(sim).post("/api/v1/node/1/expire", params={"disableExpiry": "true"}).json()["node"]
        assert node["expiry"] is None

    def test_both(self) -> None:
        sim = headscale("0.30.0")
        sim.add_node("a1", user="svc")
        body = {"expiry": "2026-09-01T00:00:00Z", "disableExpiry": True}
        assert api(sim).post("/api/v1/node/1/expire", json=body).status_code == 400

    @every_version
    def test_restart(self, version: str) -> None:
        """0.27.1 and 0.28.0 forget it."""
        sim = headscale(version)
        sim.add_node("a1", user="svc")
        sim.expire_node(1)
        sim.restart()
        node = sim.node(1)
        assert node is not None
        assert (node.expires_at is None) == (version in ("0.27.1", "0.28.0"))


class TestHeadscalePreAuthKeys:
    """Making keys, listing them, taking them back."""

    @every_version
    def test_create(self, version: str, clock: Clock) -> None:
        sim = headscale(version, clock)
        answer = api(sim).post("/api/v1/preauthkey", json=key_request(version, aclTags=["tag:svc"]))
        key = answer.json()["preAuthKey"]
        assert answer.status_code == 200
        assert set(key) == {
            "user", "id", "key", "reusable", "ephemeral", "used", "expiration", "createdAt", "aclTags",
        }  # fmt: skip
        assert datetime.fromisoformat(key["expiration"]) == NOON + timedelta(hours=1)
        assert key["aclTags"] == ([] if version == "0.23.0" else ["tag:svc"])
        assert sim.keys[0].tags == ("tag:svc",)
        form = {"0.28.0": "hskey-auth-[-_0-9A-Za-z]{12}-[-_0-9A-Za-z]{64}"} | dict.fromkeys(BEFORE_0_28, "[0-9a-f]{48}")
        assert re.fullmatch(form.get(version, "hskey-auth-.{12}-.{64}"), key["key"])
        assert key["key"] in sim.secrets()

    @every_version
    def test_no_expiration(self, version: str) -> None:
        """That is year 1, so the key is expired at birth."""
        sim = headscale(version)
        body = key_request(version)
        del body["expiration"]
        key = api(sim).post("/api/v1/preauthkey", json=body).json()["preAuthKey"]
        assert key["expiration"] == ZERO
        with pytest.raises(RegistrationRefusedError, match="expired"):
            sim.register(key=key["key"], hostname="a1")

    @every_version
    @pytest.mark.parametrize("expiration", ["2026-08-01T13:00:00", "tomorrow", "2026-08-01", 5])
    def test_broken_expiration(self, version: str, expiration: object) -> None:
        answer = api(headscale(version)).post("/api/v1/preauthkey", json=key_request(version, expiration=expiration))
        assert answer.status_code == (422 if version == "0.30.0" else 400)

    @every_version
    def test_user_by_name(self, version: str) -> None:
        answer = api(headscale(version)).post("/api/v1/preauthkey", json=key_request(version, user="svc"))
        assert answer.status_code == (200 if version in BEFORE_0_26 else 400)

    @every_version
    def test_user_by_id(self, version: str) -> None:
        """Up to 0.25 that is a user called 1."""
        answer = api(headscale(version)).post("/api/v1/preauthkey", json=key_request(version, user="1"))
        assert answer.status_code == (500 if version in BEFORE_0_26 else 200)

    @every_version
    def test_user_as_a_number(self, version: str) -> None:
        answer = api(headscale(version)).post("/api/v1/preauthkey", json=key_request(version, user=1))
        assert answer.status_code == {"0.30.0": 422}.get(version, 400 if version in BEFORE_0_26 else 200)

    @every_version
    def test_unknown_user(self, version: str) -> None:
        user = "nobody" if version in BEFORE_0_26 else "99"
        answer = api(headscale(version)).post("/api/v1/preauthkey", json=key_request(version, user=user))
        assert answer.status_code == (404 if version == "0.30.0" else 500)
        assert "user not found" in answer.text

    @every_version
    @pytest.mark.parametrize("tags", [[], ["tag:svc"]])
    def test_no_user(self, version: str, tags: list[str]) -> None:
        """0.24 and 0.25 take the only user there is; from 0.28 on tags are enough."""
        body = {"expiration": "2026-08-01T13:00:00Z", "aclTags": tags}
        answer = api(headscale(version)).post("/api/v1/preauthkey", json=body)
        accepted = version in ("0.24.3", "0.25.1") or (bool(tags) and version not in BEFORE_0_28)
        assert answer.status_code == (200 if accepted else 400 if version == "0.30.0" else 500)
        if accepted and version not in BEFORE_0_28:
            assert answer.json()["preAuthKey"]["user"] is None

    @every_version
    @pytest.mark.parametrize("tag", ["svc", "tag:Svc", "tag:a b"])
    def test_bad_tag(self, version: str, tag: str) -> None:
        answer = api(headscale(version)).post("/api/v1/preauthkey", json=key_request(version, aclTags=[tag]))
        assert answer.status_code == 400

    @every_version
    def test_list(self, version: str) -> None:
        sim = headscale(version)
        sim.add_user("ann")
        key = sim.create_key("svc")
        sim.create_key("ann")
        user = "svc" if version in BEFORE_0_26 else "1"
        shown = api(sim).get("/api/v1/preauthkey", params={"user": user}).json()["preAuthKeys"]
        assert [item["id"] for item in shown] == (["1"] if version in BEFORE_0_28 else ["1", "2"])
        assert (key.key == shown[0]["key"]) == (version in BEFORE_0_28)

    @pytest.mark.parametrize("version", BEFORE_0_28)
    def test_list_needs_a_user(self, version: str) -> None:
        sim = headscale(version)
        sim.add_user("ann")
        assert api(sim).get("/api/v1/preauthkey").status_code == 500

    @every_version
    def test_legacy_key_stays_in_full(self, version: str) -> None:
        sim = headscale("0.27.1")
        key = sim.create_key("svc")
        sim.upgrade(version)
        user = "svc" if version in BEFORE_0_26 else "1"
        (shown,) = api(sim).get("/api/v1/preauthkey", params={"user": user}).json()["preAuthKeys"]
        assert shown["key"] == key.key

    @every_version
    def test_expire(self, version: str, clock: Clock) -> None:
        sim = headscale(version, clock)
        key = sim.create_key("svc")
        assert api(sim).post("/api/v1/preauthkey/expire", json=expire_request(version, key.key)).json() == {}
        with pytest.raises(RegistrationRefusedError, match="expired"):
            sim.register(key=key.key, hostname="a1")

    @every_version
    def test_expire_again(self, version: str, clock: Clock) -> None:
        sim = headscale(version, clock)
        key = sim.create_key("svc")
        sim.expire_key(key.id)
        answer = api(sim).post("/api/v1/preauthkey/expire", json=expire_request(version, key.key))
        assert answer.status_code == (500 if version in BEFORE_0_25 else 200)

    @every_version
    def test_expire_unknown(self, version: str) -> None:
        """0.28 and 0.29 call that a success."""
        body = expire_request(version, "no such key", key_id="99")
        answer = api(headscale(version)).post("/api/v1/preauthkey/expire", json=body)
        assert answer.status_code == {"0.28.0": 200, "0.29.2": 200, "0.30.0": 404}.get(version, 500)

    @pytest.mark.parametrize("version", BEFORE_0_28)
    def test_expire_for_another_user(self, version: str) -> None:
        sim = headscale(version)
        sim.add_user("ann")
        key = sim.create_key("ann")
        answer = api(sim).post("/api/v1/preauthkey/expire", json=expire_request(version, key.key))
        assert answer.status_code == 500

    @every_version
    def test_delete(self, version: str) -> None:
        sim = headscale(version)
        sim.add_node("a1", user="svc", pre_auth_key=sim.create_key("svc"))
        answer = api(sim).delete("/api/v1/preauthkey", params={"id": "1"})
        assert answer.status_code == (501 if version in BEFORE_0_28 else 200)
        if version not in BEFORE_0_28:
            assert sim.keys == []
            assert listed(sim)[0]["preAuthKey"]["id"] == "1"
            sim.restart()
            assert listed(sim)[0]["preAuthKey"] is None


def expire_request(version: str, key: str, key_id: str = "1") -> dict[str, str]:
    """What expires a key."""
    if version in BEFORE_0_28:
        return {"user": "svc" if version in BEFORE_0_26 else "1", "key": key}
    return {"id": key_id}


class TestHeadscaleRequests:
    """How strictly a request is read."""

    @every_version
    def test_unknown_field(self, version: str) -> None:
        answer = api(headscale(version)).post("/api/v1/preauthkey", json=key_request(version, colour="blue"))
        assert answer.status_code == (422 if version == "0.30.0" else 200)

    @every_version
    def test_snake_case(self, version: str) -> None:
        sim = headscale(version)
        answer = api(sim).post("/api/v1/preauthkey", json=key_request(version, acl_tags=["tag:svc"]))
        if version == "0.30.0":
            assert answer.status_code == 422
        else:
            assert answer.status_code == 200
            assert sim.keys[0].tags == ("tag:svc",)

    @every_version
    @pytest.mark.parametrize("field", [{"reusable": "yes"}, {"aclTags": "tag:a"}, {"aclTags": [1]}])
    def test_wrong_type(self, version: str, field: dict[str, Any]) -> None:
        answer = api(headscale(version)).post("/api/v1/preauthkey", json=key_request(version, **field))
        assert answer.status_code == (422 if version == "0.30.0" else 400)
        if version in BEFORE_0_30:
            assert answer.json()["code"] == 3

    @every_version
    def test_broken_json(self, version: str) -> None:
        headers = {"Content-Type": "application/json"}
        answer = api(headscale(version)).post("/api/v1/preauthkey", content=b"{", headers=headers)
        assert answer.status_code == 400

    @every_version
    def test_empty_body(self, version: str) -> None:
        answer = api(headscale(version)).post("/api/v1/preauthkey")
        accepted = version in ("0.24.3", "0.25.1")
        assert answer.status_code == (200 if accepted else 400 if version == "0.30.0" else 500)

    @every_version
    def test_other_content_type(self, version: str) -> None:
        content = json.dumps(key_request(version)).encode()
        headers = {"Content-Type": "text/plain"}
        answer = api(headscale(version)).post("/api/v1/preauthkey", content=content, headers=headers)
        assert answer.status_code == (415 if version == "0.30.0" else 200)

    @every_version
    def test_create_user(self, version: str) -> None:
        sim = headscale(version)
        assert api(sim).post("/api/v1/user", json={"name": "ann"}).json()["user"]["id"] == "2"
        again = api(sim).post("/api/v1/user", json={"name": "ann"})
        assert again.status_code == (409 if version == "0.30.0" else 500)

    @pytest.mark.parametrize("version", since("0.23.0"))
    def test_user_filters(self, version: str) -> None:
        """Name before email before id."""
        sim = headscale(version)
        sim.add_user("ann", "ann@example.com")
        users = api(sim).get("/api/v1/user", params={"name": "ann", "id": "1"}).json()["users"]
        assert [user["name"] for user in users] == ["ann"]
        assert api(sim).get("/api/v1/user", params={"id": "x"}).status_code == 400

    def test_0_23_ignores_user_filters(self) -> None:
        sim = headscale("0.23.0")
        sim.add_user("ann")
        assert len(api(sim).get("/api/v1/user", params={"name": "ann"}).json()["users"]) == 2

    @every_version
    def test_nameless_user(self, version: str) -> None:
        sim = HeadscaleSimulator(version)
        sim.add_user("", "ann@example.com", provider="oidc")
        (user,) = api(sim).get("/api/v1/user").json()["users"]
        assert user["name"] == ("" if version in BEFORE_0_28 else "ann@example.com")


class TestHeadscaleNames:
    """What becomes of a hostname."""

    @every_version
    @pytest.mark.parametrize(
        ("hostname", "given_names"),
        [
            ("grafana.example.com", ("grafana.example.com", "grafana.example.com", "grafana-example-com")),
            ("Grafana.Example.com", ("grafana.example.com", "grafana.example.com", "grafana-example-com")),
            ("My_Host", ("my-host", "myhost", "my-host")),
            ("app.local", ("app.local", "app.local", "app")),
        ],
    )
    def test_given_name(self, version: str, hostname: str, given_names: tuple[str, str, str]) -> None:
        sim = headscale(version)
        node = sim.add_node(hostname, user="svc")
        invalid = version in ("0.27.0", "0.27.1", "0.28.0") and "_" in hostname
        if invalid:
            assert re.fullmatch("invalid-[a-z0-9]{8}", node.name)
            assert node.given_name == node.name
        else:
            lowered = version in ("0.27.0", "0.27.1", "0.28.0")
            assert node.name == (hostname.lower() if lowered else hostname)
            assert node.given_name == given_names[0 if version == "0.23.0" else 1 if version in BEFORE_0_29 else 2]

    @every_version
    def test_too_long(self, version: str) -> None:
        sim = headscale(version)
        key = sim.create_key("svc")
        hostname = f"{'a' * 40}.{'b' * 40}"
        if version in ("0.24.3", "0.25.1", "0.26.1"):
            with pytest.raises(RegistrationRefusedError, match="63"):
                sim.register(key=key.key, hostname=hostname)
            assert sim.nodes == []
            assert not sim.keys[0].used
        else:
            name = sim.register(key=key.key, hostname=hostname).name
            assert name.startswith("invalid-") == (version in ("0.27.0", "0.27.1", "0.28.0"))

    @every_version
    def test_same_hostname_twice(self, version: str) -> None:
        """Always a second node, of the same name."""
        sim = headscale(version)
        first, second, third = (sim.add_node("a.example.com", user="svc") for _ in range(3))
        assert first.name == second.name == third.name
        form = r"a\.example\.com-[a-z0-9]{8}" if version in BEFORE_0_29 else "a-example-com-1"
        assert re.fullmatch(form, second.given_name)
        assert len({first.given_name, second.given_name, third.given_name}) == 3

    @every_version
    def test_a_suffix_stays(self, version: str) -> None:
        sim = headscale(version)
        first, second = (sim.add_node("a1", user="svc") for _ in range(2))
        sim.delete_node(first.id)
        assert sim.node(second.id) == second

    @every_version
    @pytest.mark.parametrize("name", ["UPPER", "a_b", "x" * 64])
    def test_rename_refused(self, version: str, name: str) -> None:
        sim = headscale(version)
        sim.add_node("a1", user="svc")
        answer = api(sim).post(f"/api/v1/node/1/rename/{name}")
        if name == "UPPER" and version not in BEFORE_0_29:
            assert answer.json()["node"]["givenName"] == name
        else:
            assert answer.status_code == (400 if version == "0.30.0" else 500)

    @every_version
    def test_rename(self, version: str) -> None:
        sim = headscale(version)
        sim.add_node("a1", user="svc")
        sim.add_node("bb", user="svc")
        assert api(sim).post("/api/v1/node/1/rename/cc").json()["node"]["givenName"] == "cc"
        assert listed(sim)[0]["name"] == "a1"
        assert api(sim).post("/api/v1/node/1/rename/bb").status_code in (400, 500)
        own = api(sim).post("/api/v1/node/1/rename/cc")
        assert own.status_code == (500 if version in BEFORE_0_27 else 200)
        dotted = api(sim).post("/api/v1/node/1/rename/a.b")
        assert (dotted.status_code == 200) == (version in BEFORE_0_29)


class TestHeadscaleRegistration:
    """Machines that come, and come back."""

    @every_version
    def test_new(self, version: str) -> None:
        sim = headscale(version)
        key = sim.create_key("svc", tags=("tag:svc",))
        node = sim.register(key=key.key, hostname="a1")
        assert (node.name, node.tags) == ("a1", ("tag:svc",))
        assert not sim.online(node.id)
        sim.connect(node.id)
        assert sim.online(node.id)

    @every_version
    def test_a_single_use_key_is_used_up(self, version: str) -> None:
        sim = headscale(version)
        key = sim.create_key("svc")
        sim.register(key=key.key, hostname="a1")
        with pytest.raises(RegistrationRefusedError, match="used"):
            sim.register(key=key.key, hostname="a1")

    @every_version
    def test_a_reusable_key_is_not(self, version: str) -> None:
        sim = headscale(version)
        key = sim.create_key("svc", reusable=True)
        first, second = (sim.register(key=key.key, hostname="a1") for _ in range(2))
        assert first.id != second.id
        assert sim.keys[0].used is (version in BEFORE_0_25)

    @every_version
    def test_unknown_key(self, version: str) -> None:
        with pytest.raises(RegistrationRefusedError, match=r"AuthKey not found|invalid pre auth key"):
            headscale(version).register(key="none", hostname="a1")

    @every_version
    def test_restart_with_state_and_the_used_key(self, version: str) -> None:
        """Only 0.27.0 locks the machine out."""
        sim = headscale(version)
        key = sim.create_key("svc")
        node = sim.register(key=key.key, hostname="a1")
        if version == "0.27.0":
            with pytest.raises(RegistrationRefusedError, match="already used"):
                comes_back(sim, node, key.key)
        else:
            assert comes_back(sim, node, key.key).id == node.id

    @every_version
    def test_restart_with_state_and_another_key_that_expired(self, version: str) -> None:
        sim = headscale(version)
        node = sim.register(key=sim.create_key("svc").key, hostname="a1")
        expired = sim.create_key("svc", expires_in=timedelta(0))
        if version in ("0.27.0", "0.27.1"):
            with pytest.raises(RegistrationRefusedError, match="expired"):
                comes_back(sim, node, expired.key)
        else:
            assert comes_back(sim, node, expired.key).id == node.id

    @every_version
    def test_restart_with_state_and_a_deleted_key(self, version: str) -> None:
        """From 0.27 on the key is looked up first."""
        sim = headscale(version)
        node = sim.register(key=sim.create_key("svc").key, hostname="a1")
        if version in BEFORE_0_27:
            assert comes_back(sim, node, "deleted").id == node.id
        else:
            with pytest.raises(RegistrationRefusedError, match="invalid pre auth key"):
                comes_back(sim, node, "deleted")

    @every_version
    def test_restart_with_state_and_no_key(self, version: str) -> None:
        sim = headscale(version)
        node = sim.register(key=sim.create_key("svc").key, hostname="a1")
        assert comes_back(sim, node, None).id == node.id
        sim.delete_node(node.id)
        with pytest.raises(RegistrationRefusedError, match="log in"):
            comes_back(sim, node, None)

    @every_version
    def test_deleted_node_comes_back_as_a_new_one(self, version: str) -> None:
        sim = headscale(version)
        key = sim.create_key("svc", reusable=True)
        node = sim.register(key=key.key, hostname="a1")
        sim.delete_node(node.id)
        again = comes_back(sim, node, key.key)
        assert (again.machine_key, again.given_name) == (node.machine_key, node.given_name)
        assert again.id == node.id + 1
        assert again.addresses != node.addresses

    @every_version
    def test_key_of_another_user(self, version: str) -> None:
        """0.23 and 0.24 move an expired node, later ones make a second."""
        sim = headscale(version)
        sim.add_user("ann")
        node = sim.register(key=sim.create_key("svc").key, hostname="a1")
        sim.expire_node(node.id)
        again = comes_back(sim, node, sim.create_key("ann").key)
        assert (again.id == node.id) == (version in BEFORE_0_25)
        assert again.user_id == 2

    @every_version
    @pytest.mark.parametrize("tags", [(), ("tag:svc",)])
    def test_an_expired_node_comes_back_to_life(self, version: str, tags: tuple[str, ...]) -> None:
        """Not one with tags, from 0.28 on; and its key is burnt."""
        sim = headscale(version)
        node = sim.register(key=sim.create_key("svc", tags=tags).key, hostname="a1")
        sim.expire_node(node.id)
        key = sim.create_key("svc", tags=tags)
        again = comes_back(sim, node, key.key)
        assert again.id == node.id
        assert (again.expires_at is None) == (version in BEFORE_0_28 or not tags)
        assert sim.keys[-1].used

    @pytest.mark.parametrize("version", since(*BEFORE_0_28))
    def test_key_with_tags_alone(self, version: str) -> None:
        """0.28 makes another node at every restart."""
        sim = headscale(version)
        key = sim.create_key(None, tags=("tag:svc",), reusable=True)
        node = sim.register(key=key.key, hostname="a1")
        assert (comes_back(sim, node, key.key).id == node.id) == (version != "0.28.0")

    def test_used_key_with_tags_alone_on_0_28(self) -> None:
        sim = headscale("0.28.0")
        key = sim.create_key(None, tags=("tag:svc",))
        node = sim.register(key=key.key, hostname="a1")
        with pytest.raises(RegistrationRefusedError, match="already used"):
            comes_back(sim, node, key.key)

    @pytest.mark.parametrize("version", ["0.29.2", "0.30.0"])
    def test_a_tagged_key_takes_a_node_over(self, version: str) -> None:
        sim = headscale(version)
        node = sim.register(key=sim.create_key("svc").key, hostname="a1")
        again = comes_back(sim, node, sim.create_key(None, tags=("tag:svc",)).key)
        assert (again.id, again.tags, again.user_id) == (node.id, ("tag:svc",), None)

    @pytest.mark.parametrize("version", since(*BEFORE_0_28))
    def test_the_second_key_is_forgotten_at_a_restart(self, version: str) -> None:
        sim = headscale(version)
        node = sim.register(key=sim.create_key("svc").key, hostname="a1")
        comes_back(sim, node, sim.create_key("svc").key)
        assert listed(sim)[0]["preAuthKey"]["id"] == "2"
        sim.restart()
        assert listed(sim)[0]["preAuthKey"]["id"] == "1"

    @pytest.mark.parametrize("version", ["0.25.1", "0.26.1"])
    def test_coming_back_costs_an_address_and_the_birthday(self, version: str) -> None:
        sim = headscale(version)
        node = sim.register(key=sim.create_key("svc").key, hostname="a1")
        sim.expire_node(node.id)
        assert comes_back(sim, node, sim.create_key("svc").key).addresses == node.addresses
        assert listed(sim)[0]["createdAt"] == ZERO
        assert sim.add_node("b1", user="svc").address == "100.64.0.3"

    @every_version
    def test_hostname_follows(self, version: str) -> None:
        sim = headscale(version)
        node = sim.register(key=sim.create_key("svc").key, hostname="a1")
        name = comes_back(sim, node, None, hostname="b1").name
        assert name == ("a1" if version == "0.23.0" else "b1")


def comes_back(sim: HeadscaleSimulator, node: Node, key: str | None, *, hostname: str = "a1") -> Node:
    """The machine registers again, its state kept."""
    return sim.register(key=key, hostname=hostname, machine_key=node.machine_key, node_key=node.node_key)


class TestHeadscaleSessions:
    """Who is online, and which addresses are free."""

    @every_version
    def test_grace(self, version: str, clock: Clock) -> None:
        sim = headscale(version, clock)
        node = sim.add_node("a1", user="svc")
        sim.disconnect(node.id)
        assert sim.online(node.id) == (version not in BEFORE_0_27)
        clock.advance(seconds=10)
        assert not listed(sim)[0]["online"]

    @every_version
    def test_silent_loss(self, version: str, clock: Clock) -> None:
        sim = headscale(version, clock)
        node = sim.add_node("a1", user="svc")
        sim.disconnect(node.id, silently=True)
        clock.advance(minutes=14)
        assert sim.online(node.id)
        clock.advance(minutes=2)
        assert not sim.online(node.id)

    @every_version
    def test_deleted_while_connected(self, version: str) -> None:
        """From 0.27 on nobody tells the client, until it connects again."""
        sim = headscale(version)
        node = sim.add_node("a1", user="svc")
        api(sim).delete(f"/api/v1/node/{node.id}")
        assert sim.session_open(node.id) == (version not in BEFORE_0_27)
        with pytest.raises(NodeGoneError):
            sim.connect(node.id)

    @every_version
    def test_restart(self, version: str) -> None:
        """All are offline, and addresses that were freed go out again, lowest first."""
        sim = headscale(version)
        first, _, third = (sim.add_node(f"a{number}", user="svc") for number in range(3))
        sim.delete_node(first.id)
        sim.delete_node(third.id)
        assert sim.add_node("b1", user="svc").address == "100.64.0.4"
        sim.restart()
        assert not any(node["online"] for node in listed(sim))
        assert sim.add_node("b2", user="svc").address == first.address
        assert sim.add_node("b3", user="svc").address == third.address
        assert [node.id for node in sim.nodes] == [2, 4, 5, 6]

    @every_version
    def test_ephemeral(self, version: str, clock: Clock) -> None:
        sim = headscale(version, clock)
        node = sim.register(key=sim.create_key("svc", ephemeral=True).key, hostname="a1")
        sim.connect(node.id)
        clock.advance(days=1)
        assert len(listed(sim)) == 1
        sim.disconnect(node.id)
        clock.advance(seconds=131)
        assert listed(sim) == []

    @every_version
    def test_logout(self, version: str, clock: Clock) -> None:
        sim = headscale(version, clock)
        node = sim.add_node("a1", user="svc")
        sim.logout(node.id)
        expiry = datetime.fromisoformat(listed(sim)[0]["expiry"])
        assert (expiry.year == 1970) == (version in ("0.25.1", "0.26.1", "0.27.0", "0.27.1", "0.28.0"))

    def test_one_family(self) -> None:
        sim = headscale("0.28.0", families=("v6",))
        assert sim.add_node("a1", user="svc").addresses == ("fd7a:115c:a1e0::1",)

    @every_version
    def test_api_key_after_upgrades(self, version: str) -> None:
        """One of 0.24 or older is refused from 0.28 on; one of 0.25 is taken by all."""
        for made, refused in (("0.24.3", version not in BEFORE_0_28), ("0.25.1", False)):
            sim = headscale(made)
            client = api(sim)
            sim.upgrade(version)
            assert (client.get("/api/v1/node").status_code == 401) == refused
            assert sim.takes_api_key != refused

    def test_upgrade(self) -> None:
        """The client of a server that was upgraded meets another dialect."""
        sim = headscale("0.25.1")
        sim.add_node("a1", user="svc", tags=("tag:svc",))
        client = api(sim)
        assert client.get("/version").status_code == 404
        sim.upgrade("0.29.2")
        assert client.get("/version").json()["version"] == "v0.29.2"
        assert client.get("/api/v1/node").json()["nodes"][0]["tags"] == ["tag:svc"]
        assert client.get("/api/v1/node/1").json()["node"]["user"] is None


# --- Cloudflare -------------------------------------------------------------------------------------


class Account:
    """A simulated account with one zone, and a client of it."""

    def __init__(self, sim: CloudflareSimulator, zone: str) -> None:
        self.sim = sim
        self.zone = zone
        self.records = f"/zones/{zone}/dns_records"
        self.client = self.client_with(f"Bearer {sim.token}")

    def client_with(self, authorization: str | None) -> httpx.Client:
        """A client with another header."""
        return httpx.Client(
            transport=httpx.WSGITransport(app=self.sim),
            base_url="http://cloudflare.test/client/v4",
            headers={} if authorization is None else {"Authorization": authorization},
        )

    def create(self, **fields: Any) -> httpx.Response:
        """Ask for a record."""
        spec = {"type": "A", "name": "a.example.com", "content": "100.64.0.1", "ttl": 60, "proxied": False}
        return self.client.post(self.records, json=spec | fields)

    def names(self, **parameters: str) -> list[str]:
        """The names of the records that a filter finds."""
        answer = self.client.get(
            self.records, params={key.replace("_", "."): value for key, value in parameters.items()}
        )
        return [record["name"] for record in answer.json()["result"]]


def cloudflare(**settings: Any) -> Account:
    """An account with the zone example.com."""
    sim = CloudflareSimulator(**settings)
    return Account(sim, sim.add_zone("example.com"))


@pytest.fixture
def account() -> Account:
    return cloudflare()


def codes(answer: httpx.Response) -> tuple[int, int]:
    """The status and the first error's code of a refusal."""
    body = answer.json()
    assert body["success"] is False
    assert body["result"] is None
    return answer.status_code, body["errors"][0]["code"]


class TestCloudflareRecords:
    """What a zone accepts, and how it answers."""

    def test_shape(self, account: Account) -> None:
        answer = account.create(comment="mine")
        record = answer.json()["result"]
        assert answer.status_code == 200
        assert set(record) == {
            "id", "name", "type", "content", "proxiable", "proxied", "ttl", "settings", "meta", "comment",
            "tags", "created_on", "modified_on", "comment_modified_on",
        }  # fmt: skip
        assert re.fullmatch("[0-9a-f]{32}", record["id"])
        assert (record["proxiable"], record["settings"], record["meta"], record["tags"]) == (False, {}, {}, [])
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{4,6}Z", record["created_on"])

    def test_no_comment_is_null(self, account: Account) -> None:
        record = account.create().json()["result"]
        assert record["comment"] is None
        assert "comment_modified_on" not in record

    def test_defaults(self, account: Account) -> None:
        spec = {"type": "A", "name": "a.example.com", "content": "192.0.2.1"}
        record = account.client.post(account.records, json=spec).json()["result"]
        assert (record["ttl"], record["proxied"]) == (1, False)

    @pytest.mark.parametrize(
        ("name", "kept"),
        [
            ("A.Example.COM", "a.example.com"),
            ("a", "a.example.com"),
            ("@", "example.com"),
            ("mail.other.org", "mail.other.org.example.com"),
            ("bücher.example.com", "xn--bcher-kva.example.com"),
            ("*.example.com", "*.example.com"),
            ("_acme-challenge.a.example.com", "_acme-challenge.a.example.com"),
        ],
    )
    def test_name(self, account: Account, name: str, kept: str) -> None:
        assert account.create(name=name).json()["result"]["name"] == kept

    @pytest.mark.parametrize("name", ["", None, "a..example.com", "a b.example.com", "x" * 64, "a.example.com."])
    def test_bad_name(self, account: Account, name: object) -> None:
        assert codes(account.create(name=name)) == (400, 9000)

    def test_ipv6_is_normalised(self, account: Account) -> None:
        record = account.create(type="AAAA", content="FD7A:115C:A1E0:0::0001").json()["result"]
        assert record["content"] == "fd7a:115c:a1e0::1"
        assert codes(account.create(type="AAAA", content="fd7a:115c:a1e0::1")) == (400, 81058)

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            pytest.param({"content": "fd7a::1"}, 9005, id="no-ipv4"),
            pytest.param({"content": "100.64.0.300"}, 9005, id="broken-ipv4"),
            pytest.param({"proxied": True}, 9003, id="tailnet-address-proxied"),
            pytest.param({"proxied": True, "type": "AAAA", "content": "fd7a:115c:a1e0::1"}, 9003, id="ula-proxied"),
            pytest.param({"proxied": True, "content": "10.0.0.1"}, 9003, id="private-proxied"),
            pytest.param({"tags": ["a:b"]}, 9300, id="tags-on-free"),
            pytest.param({"ttl": 2}, 9021, id="short-ttl"),
            pytest.param({"ttl": 59}, 9021, id="shorter-than-a-minute"),
            pytest.param({"ttl": 86401}, 9021, id="long-ttl"),
            pytest.param({"ttl": "60"}, 1004, id="ttl-as-text"),
            pytest.param({"proxied": "no"}, 1004, id="proxied-as-text"),
            pytest.param({"comment": "x" * 101}, 1004, id="long-comment"),
            pytest.param({"comment": "a\nb"}, 1004, id="newline-in-comment"),
            pytest.param({"type": "a"}, 1004, id="type-in-lower-case"),
        ],
    )
    def test_refused(self, account: Account, fields: dict[str, Any], code: int) -> None:
        assert codes(account.create(**fields)) == (400, code)
        assert account.sim.records(account.zone) == []

    def test_paid_plans_allow_more(self) -> None:
        account = cloudflare(plan="enterprise")
        answer = account.create(comment="x" * 500, tags=["a:b"], ttl=30)
        assert answer.json()["result"]["tags"] == ["a:b"]

    def test_proxied(self, account: Account) -> None:
        record = account.create(content="198.51.100.7", proxied=True).json()["result"]
        assert (record["proxiable"], record["proxied"], record["ttl"]) == (True, True, 1)

    def test_identical(self, account: Account) -> None:
        account.create()
        assert codes(account.create(ttl=300, comment="other")) == (400, 81058)

    def test_another_address_is_no_conflict(self, account: Account) -> None:
        account.create()
        assert account.create(content="100.64.0.2").status_code == 200
        assert len(account.sim.records(account.zone, "a.example.com")) == 2

    @pytest.mark.parametrize(
        ("there", "wanted", "code"),
        [
            (("CNAME", "b.example.com"), ("A", "100.64.0.1"), 81054),
            (("CNAME", "b.example.com"), ("AAAA", "fd7a::1"), 81054),
            (("A", "100.64.0.1"), ("CNAME", "b.example.com"), 81053),
            (("CNAME", "b.example.com"), ("CNAME", "c.example.com"), 81053),
            (("NS", "ns.example.org"), ("A", "100.64.0.1"), 81056),
            (("TXT", "hello"), ("NS", "ns.example.org"), 81056),
        ],
    )
    def test_conflict(self, account: Account, there: tuple[str, str], wanted: tuple[str, str], code: int) -> None:
        account.create(type=there[0], content=there[1])
        assert codes(account.create(type=wanted[0], content=wanted[1])) == (400, code)

    def test_txt_beside_anything(self, account: Account) -> None:
        account.create(type="CNAME", content="b.example.com")
        assert account.create(type="TXT", content="Hello").json()["result"]["content"] == "Hello"

    def test_quota(self) -> None:
        account = cloudflare(quota=1)
        account.create()
        assert codes(account.create(name="b")) == (400, 81045)
        usage = account.client.get(f"{account.records}/usage").json()["result"]
        assert usage == {"record_quota": 1, "record_usage": 1}

    def test_patch_keeps_what_is_left_out(self, account: Account) -> None:
        record_id = account.create(comment="mine").json()["result"]["id"]
        url = f"{account.records}/{record_id}"
        patched = account.client.patch(url, json={"content": "100.64.0.2"}).json()["result"]
        assert (patched["content"], patched["comment"], patched["ttl"]) == ("100.64.0.2", "mine", 60)
        cleared = account.client.patch(url, json={"comment": ""}).json()["result"]
        assert cleared["comment"] is None

    def test_put_resets_what_is_left_out(self, account: Account) -> None:
        record_id = account.create(comment="mine").json()["result"]["id"]
        spec = {"type": "A", "name": "a.example.com", "content": "100.64.0.2"}
        written = account.client.put(f"{account.records}/{record_id}", json=spec).json()["result"]
        assert (written["id"], written["comment"], written["ttl"]) == (record_id, None, 1)
        assert codes(account.client.put(f"{account.records}/{record_id}", json={"content": "100.64.0.3"}))[0] == 400

    @pytest.mark.parametrize("method", ["PATCH", "PUT"])
    def test_the_type_stays(self, account: Account, method: str) -> None:
        record_id = account.create().json()["result"]["id"]
        spec = {"type": "AAAA", "name": "a.example.com", "content": "fd7a::1"}
        assert codes(account.client.request(method, f"{account.records}/{record_id}", json=spec))[0] == 400

    def test_patch_into_a_conflict(self, account: Account) -> None:
        account.create()
        other = account.create(content="100.64.0.2").json()["result"]["id"]
        answer = account.client.patch(f"{account.records}/{other}", json={"content": "100.64.0.1"})
        assert codes(answer) == (400, 81058)

    def test_delete(self, account: Account) -> None:
        record_id = account.create().json()["result"]["id"]
        answer = account.client.delete(f"{account.records}/{record_id}")
        assert answer.json()["result"] == {"id": record_id}
        assert codes(account.client.delete(f"{account.records}/{record_id}"))[1] == 81044
        assert codes(account.client.get(f"{account.records}/{record_id}"))[1] == 81044

    def test_behind_the_clients_back(self, account: Account) -> None:
        record_id = account.sim.add_record(account.zone, type="A", name="a", content="100.64.0.1", comment="hers")
        account.sim.change_record(record_id, content="100.64.0.9")
        assert account.client.get(f"{account.records}/{record_id}").json()["result"]["content"] == "100.64.0.9"
        with pytest.raises(ApiError, match="81058"):
            account.sim.add_record(account.zone, type="A", name="a", content="100.64.0.9")
        account.sim.remove_record(record_id)
        assert account.sim.records(account.zone) == []
        assert account.sim.writes == []


class TestCloudflareLists:
    """Filters and pages."""

    @pytest.fixture
    def account(self) -> Account:
        account = cloudflare()
        account.create(name="a", comment="Mark one")
        account.create(name="b", comment="mark two")
        account.create(name="c", type="TXT", content="Text")
        account.create(name="d", content="198.51.100.1", proxied=True)
        return account

    @pytest.mark.parametrize(
        ("parameters", "found"),
        [
            ({"name": "A.example.com"}, "a"),
            ({"name": "a"}, ""),
            ({"name": "contains:a"}, ""),
            ({"name_exact": "b.example.com"}, "b"),
            ({"name_contains": ".EXAMPLE."}, "abcd"),
            ({"name_startswith": "c."}, "c"),
            ({"name_endswith": "example.com"}, "abcd"),
            ({"type": "TXT"}, "c"),
            ({"content": "text"}, "c"),
            ({"content_startswith": "100.64."}, "ab"),
            ({"comment_exact": "MARK ONE"}, "a"),
            ({"comment_startswith": "mark"}, "ab"),
            ({"comment_present": ""}, "ab"),
            ({"comment_absent": "true"}, "cd"),
            ({"proxied": "true"}, "d"),
            ({"type": "A", "comment_endswith": "two"}, "b"),
            ({"match": "any", "type": "TXT", "comment_endswith": "two"}, "bc"),
            ({"tag_present": "x"}, ""),
        ],
    )
    def test_filter(self, account: Account, parameters: dict[str, str], found: str) -> None:
        assert "".join(sorted(name[0] for name in account.names(**parameters))) == found

    def test_several_names(self, account: Account) -> None:
        query = "match=any&name=a.example.com&name=b.example.com"
        assert len(account.client.get(f"{account.records}?{query}").json()["result"]) == 2

    def test_pages(self, account: Account) -> None:
        def page(number: int) -> dict[str, Any]:
            answer = account.client.get(account.records, params={"per_page": "3", "page": number, "order": "name"})
            body: dict[str, Any] = answer.json()
            return body

        first, second, third = page(1), page(2), page(3)
        assert [len(body["result"]) for body in (first, second, third)] == [3, 1, 0]
        assert second["result"][0]["name"] == "d.example.com"
        assert first["result_info"] == {"page": 1, "per_page": 3, "count": 3, "total_count": 4, "total_pages": 2}

    def test_nothing_is_one_page(self, account: Account) -> None:
        info = account.client.get(account.records, params={"name": "none"}).json()["result_info"]
        assert info == {"page": 1, "per_page": 100, "count": 0, "total_count": 0, "total_pages": 1}

    @pytest.mark.parametrize("query", ["per_page=0", "per_page=5001", "page=0", "page=x", "order=date", "match=some"])
    def test_bad_query(self, account: Account, query: str) -> None:
        assert codes(account.client.get(f"{account.records}?{query}&name=a"))[0] == 400


class TestCloudflareBatch:
    """Several changes as one."""

    def test_order(self, account: Account) -> None:
        """A record may take the place of the one that is deleted."""
        old = account.create(type="CNAME", content="b.example.com").json()["result"]["id"]
        kept = account.create(name="k").json()["result"]["id"]
        put = account.create(name="p").json()["result"]["id"]
        answer = account.client.post(
            f"{account.records}/batch",
            json={
                "posts": [{"type": "A", "name": "a.example.com", "content": "100.64.0.1"}],
                "puts": [{"id": put, "type": "A", "name": "p", "content": "100.64.0.8"}],
                "patches": [{"id": kept, "content": "100.64.0.9"}],
                "deletes": [{"id": old}],
            },
        )
        result = answer.json()["result"]
        assert {key: [record["content"] for record in records] for key, records in result.items()} == {
            "deletes": ["b.example.com"],
            "patches": ["100.64.0.9"],
            "puts": ["100.64.0.8"],
            "posts": ["100.64.0.1"],
        }

    def test_all_or_nothing(self, account: Account) -> None:
        old = account.create().json()["result"]["id"]
        before = account.sim.records(account.zone)
        body = {
            "deletes": [{"id": old}, {"id": "0" * 32}],
            "posts": [{"type": "A", "name": "b", "content": "nonsense"}],
        }
        answer = account.client.post(f"{account.records}/batch", json=body)
        assert codes(answer)[1] == 81044
        assert len(answer.json()["errors"]) == 1
        assert account.sim.records(account.zone) == before

    def test_too_many(self, account: Account) -> None:
        posts = [{"type": "A", "name": f"a{number}", "content": "192.0.2.1"} for number in range(201)]
        assert codes(account.client.post(f"{account.records}/batch", json={"posts": posts}))[0] == 400
        assert account.sim.records(account.zone) == []

    @pytest.mark.parametrize("body", [{"deletes": [{}]}, {"patches": [{"id": "x"}]}, {"posts": {}, "puts": [1]}, []])
    def test_malformed(self, account: Account, body: object) -> None:
        assert codes(account.client.post(f"{account.records}/batch", json=body))[0] == 400


class TestCloudflareRights:
    """Tokens, zones, and who may do what."""

    @pytest.mark.parametrize(
        "header", ["Bearer", "Bearer ", "Bearer a b", "Bearer a\tb", "Basic abc", "Bearer <token>", 'Bearer "abc"']
    )
    def test_malformed_header(self, account: Account, header: str) -> None:
        answer = account.client_with(header).get(account.records)
        assert codes(answer) == (400, 6003)
        assert answer.json()["errors"][0]["error_chain"][0]["code"] == 6111

    def test_no_header(self, account: Account) -> None:
        assert codes(account.client_with(None).get(account.records)) == (400, 9106)

    @pytest.mark.parametrize("path", ["/zones", "/zones/{zone}/dns_records"])
    def test_unknown_token(self, account: Account, path: str) -> None:
        answer = account.client_with("Bearer abcdef").get(path.format(zone=account.zone))
        assert codes(answer) == (403, 9109)

    @pytest.mark.parametrize("status", ["disabled", "expired"])
    def test_token_that_was_ended(self, account: Account, status: Any) -> None:
        client = account.client_with(f"Bearer {account.sim.set_token(status=status)}")
        assert codes(client.get(account.records)) == (403, 9109)
        assert client.get("/user/tokens/verify").json()["result"]["status"] == status

    def test_reading_only(self, account: Account) -> None:
        account.client = account.client_with(f"Bearer {account.sim.set_token(permission='read')}")
        assert account.client.get(account.records).status_code == 200
        assert codes(account.create()) == (403, 10000)
        assert codes(account.client.post(f"{account.records}/batch", json={})) == (403, 10000)

    def test_no_right(self, account: Account) -> None:
        client = account.client_with(f"Bearer {account.sim.set_token(permission='none')}")
        assert codes(client.get(account.records)) == (403, 10000)

    def test_zone_of_another(self, account: Account) -> None:
        other = account.sim.add_zone("other.org", account_owned=False)
        assert codes(account.client.get(f"/zones/{other}/dns_records")) == (403, 10000)
        assert codes(account.client.get(f"/zones/{'0' * 32}/dns_records")) == (403, 10000)
        assert account.client.get("/zones", params={"name": "other.org"}).json()["result"] == []

    def test_refused_for_once(self, account: Account) -> None:
        """Valid tokens were seen refused now and then."""
        account.sim.faults.add(refusal(403, 10000, "Authentication error"))
        assert codes(account.create()) == (403, 10000)
        assert account.create().status_code == 200

    def test_token_for_one_zone(self, account: Account) -> None:
        other = account.sim.add_zone("other.org")
        client = account.client_with(f"Bearer {account.sim.set_token(zones=[account.zone])}")
        assert [zone["name"] for zone in client.get("/zones").json()["result"]] == ["example.com"]
        assert codes(client.get(f"/zones/{other}/dns_records")) == (403, 10000)

    @pytest.mark.parametrize("path", ["/zones/example.com/dns_records", "/zones/{zone}/dns_records/abc"])
    def test_malformed_id(self, account: Account, path: str) -> None:
        assert codes(account.client.get(path.format(zone=account.zone))) == (400, 7003)

    def test_zone_by_name(self, account: Account) -> None:
        account.sim.add_zone("sub.example.com", status="pending")
        (zone,) = account.client.get("/zones", params={"name": "Example.com"}).json()["result"]
        assert (zone["id"], zone["status"], zone["account"]["id"]) == (account.zone, "active", account.sim.account_id)
        both = account.client.get("/zones", params={"name": "ends_with:example.com"}).json()["result"]
        assert len(both) == 2
        assert account.client.get("/zones", params={"name": "example"}).json()["result"] == []
        assert account.client.get(f"/zones/{account.zone}").json()["result"]["name"] == "example.com"

    @pytest.mark.parametrize("per_page", ["4", "51"])
    def test_zones_per_page(self, account: Account, per_page: str) -> None:
        assert codes(account.client.get("/zones", params={"per_page": per_page}))[0] == 400

    @pytest.mark.parametrize("account_owned", [False, True])
    def test_both_kinds_of_token(self, account_owned: bool) -> None:
        """Both work everywhere but on the other's verify route."""
        account = cloudflare(account_owned=account_owned)
        assert account.create().status_code == 200
        assert account.sim.token.startswith("cfat_") == account_owned
        user = account.client.get("/user/tokens/verify")
        owned = account.client.get(f"/accounts/{account.sim.account_id}/tokens/verify")
        assert (user.status_code, owned.status_code) == ((401, 200) if account_owned else (200, 401))


class TestCloudflareLimits:
    """Being locked out."""

    @pytest.mark.parametrize("code", [971, 10429])
    @pytest.mark.parametrize("retry_after", [False, True])
    def test_429(self, clock: Clock, code: Any, retry_after: bool) -> None:
        account = cloudflare(now=clock)
        account.sim.limit(2, timedelta(minutes=5), retry_after=retry_after, code=code)
        assert [account.client.get(account.records).status_code for _ in range(3)] == [200, 200, 429]
        clock.advance(seconds=100.5)
        answer = account.client.get(account.records)
        assert answer.json()["errors"][0]["code"] == code
        assert ("result" in answer.json()) == (code == 971)
        assert answer.headers.get("retry-after") == ("200" if retry_after else None)
        clock.advance(seconds=199.5)
        assert account.client.get(account.records).status_code == 200

    def test_a_new_window(self, clock: Clock) -> None:
        account = cloudflare(now=clock)
        account.sim.limit(1, timedelta(minutes=5))
        for _ in range(3):
            assert account.client.get(account.records).status_code == 200
            clock.advance(minutes=5)

    def test_headers(self, clock: Clock) -> None:
        account = cloudflare(now=clock)
        account.sim.limit(100, timedelta(minutes=5))
        clock.advance(minutes=1)
        answer = account.client.get(account.records)
        assert answer.headers["ratelimit"] == '"default";r=99;t=240'
        assert answer.headers["ratelimit-policy"] == '"default";q=100;w=300'

    def test_lifted(self, account: Account) -> None:
        account.sim.limit(0)
        assert account.client.get(account.records).status_code == 429
        account.sim.unlimit()
        assert account.client.get(account.records).status_code == 200


# --- Faults -----------------------------------------------------------------------------------------


@pytest.fixture(params=["in-process", "loopback"])
def broken(request: pytest.FixtureRequest) -> Iterator[Account]:
    """An account over either transport."""
    account = cloudflare()
    if request.param == "in-process":
        yield account
        return
    with serve(account.sim) as url:
        headers = account.client.headers
        with httpx.Client(base_url=f"{url}/client/v4", headers=headers, trust_env=False) as client:
            account.client = client
            yield account


class TestFaults:
    """What can go wrong between a client and a service."""

    @pytest.fixture(autouse=True)
    def _quiet(self, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
        """A fault is no bug of the simulator: nothing is printed."""
        yield
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            pytest.param(faults.refuse(), (httpx.ConnectError, httpx.ReadError), id="refuse"),
            pytest.param(faults.drop(), httpx.ReadError, id="drop"),
            pytest.param(faults.drop(committed=True), httpx.ReadError, id="drop-committed"),
            pytest.param(faults.hang(), httpx.ReadTimeout, id="hang"),
            pytest.param(faults.hang(committed=True), httpx.ReadTimeout, id="hang-committed"),
            pytest.param(faults.truncate(), httpx.RemoteProtocolError, id="truncate"),
        ],
    )
    def test_connection(
        self, broken: Account, fault: faults.Fault, error: type[Exception] | tuple[type[Exception], ...]
    ) -> None:
        broken.sim.faults.add(fault)
        if error is httpx.ReadTimeout:
            broken.client.timeout = httpx.Timeout(None, read=0.2)
        with pytest.raises(error):
            broken.create()
        broken.client.timeout = httpx.Timeout(None)
        broken.sim.faults.release()
        assert bool(broken.sim.records(broken.zone)) == fault.committed
        assert broken.client.get(broken.records).status_code == 200
        assert broken.sim.faults.pending == 0

    @pytest.mark.parametrize("status", [502, 503])
    def test_html(self, broken: Account, status: int) -> None:
        broken.sim.faults.add(faults.html(status))
        answer = broken.create()
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/html")
        assert broken.sim.records(broken.zone) == []

    @pytest.mark.parametrize("retry_after", [None, 30])
    def test_429(self, broken: Account, retry_after: int | None) -> None:
        broken.sim.faults.add(faults.too_many_requests(retry_after))
        answer = broken.create()
        assert answer.status_code == 429
        assert answer.headers.get("Retry-After") == (None if retry_after is None else "30")

    def test_garbage(self, broken: Account) -> None:
        broken.sim.faults.add(faults.garbage())
        answer = broken.create()
        assert answer.headers["content-type"] == "application/json"
        with pytest.raises(ValueError, match=r"."):
            answer.json()

    def test_wrong_content_type(self, broken: Account) -> None:
        broken.sim.faults.add(faults.wrong_content_type())
        answer = broken.create()
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=UTF-8")

    def test_oversize(self, broken: Account) -> None:
        broken.sim.faults.add(faults.oversize(300_000))
        assert len(broken.create().content) == 300_000

    def test_stale(self, broken: Account) -> None:
        broken.create()
        broken.sim.faults.add(faults.stale(), method="GET")
        assert broken.names() == []
        assert broken.names() == ["a.example.com"]

    def test_which_and_how_often(self, account: Account) -> None:
        account.sim.faults.add(faults.html(503), method="GET", path=r"[?&]page=2", times=2, after=1)
        statuses = [account.client.get(account.records, params={"page": page}).status_code for page in (1, 2, 2, 2, 2)]
        assert statuses == [200, 200, 503, 503, 200]
        assert account.create().status_code == 200

    def test_until_cleared(self, account: Account) -> None:
        account.sim.faults.add(faults.html(), times=None)
        assert {account.create().status_code for _ in range(3)} == {502}
        account.sim.faults.clear()
        assert account.create().status_code == 200

    def test_drip_in_process(self, account: Account) -> None:
        account.sim.faults.add(faults.drip())
        with pytest.raises(httpx.ReadTimeout):
            account.create()

    def test_drip_over_loopback(self, account: Account) -> None:
        account.sim.faults.add(faults.drip(interval_s=0.001, limit_s=0.02))
        with serve(account.sim) as url:
            answer = httpx.get(f"{url}/client/v4/zones", headers=account.client.headers, trust_env=False)
        assert answer.json()["success"] is True

    def test_serving_ends_while_a_request_hangs(self, account: Account) -> None:
        account.sim.faults.add(faults.hang())
        with (
            pytest.raises(httpx.ReadTimeout),
            serve(account.sim) as url,
        ):
            httpx.get(f"{url}/client/v4/zones", timeout=httpx.Timeout(None, read=0.05), trust_env=False)

    def test_traffic(self, account: Account) -> None:
        """Every request is noted, also one that never got its answer."""
        account.client.get(account.records, params={"name": "a"})
        account.sim.faults.add(faults.drop(committed=True))
        with pytest.raises(httpx.ReadError):
            account.create()
        read, write = account.sim.requests
        assert (read.method, read.query, read.status) == ("GET", "name=a", 200)
        assert json.loads(read.response)["success"] is True
        assert (write.is_write, write.status) == (True, None)
        assert json.loads(write.body)["name"] == "a.example.com"
        assert json.loads(write.response)["success"] is True
        assert account.sim.writes == [write]

    def test_traffic_of_a_long_run(self, account: Account) -> None:
        """Sizes are noted even where bodies would fill the memory."""
        account.sim.keep_bodies = False
        answer = account.create()
        (exchange,) = account.sim.requests
        assert (exchange.body, exchange.response) == (b"", b"")
        assert exchange.size == len(answer.content)

    def test_headscale_goes_stale_too(self) -> None:
        sim = headscale("0.28.0")
        sim.add_node("a1", user="svc")
        api(sim).delete("/api/v1/node/1")
        sim.faults.add(faults.stale())
        assert [node["id"] for node in listed(sim)] == ["1"]
        assert listed(sim) == []


# --- The VPN client ---------------------------------------------------------------------------------


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "authkey"


def interface_addresses(name: str) -> set[str]:
    """The addresses of an interface, without the link's own; empty when it is not there."""
    command = ["ip", "-json", "address", "show", "dev", name]
    shown = subprocess.run(command, check=False, capture_output=True, text=True)
    interfaces = json.loads(shown.stdout) if shown.returncode == 0 else []
    found = [address for interface in interfaces for address in interface["addr_info"]]
    return {address["local"] for address in found if address["scope"] == "global"}


class TestVpnClient:
    """The stand-in for the tailscale container."""

    @pytest.mark.parametrize("served", [False, True])
    def test_start(self, key_file: Path, served: bool) -> None:
        sim = headscale("0.28.0", offline_grace=timedelta(0))
        key_file.write_text(f"\n {sim.create_key('svc').key} \r\n", encoding="utf-8")
        with serve(sim) as url:
            client = VpnClient(url if served else sim, key_file=key_file, hostname="a.example.com")
            node = client.start()
            assert sim.online(node.node_id)
            assert node.addresses == client.addresses == ("100.64.0.1", "fd7a:115c:a1e0::1")
            moved = client.change_address()
            assert moved.addresses == client.addresses != node.addresses
            client.die()
            assert not sim.online(node.node_id)

    @pytest.mark.parametrize("content", [None, "", " \n"])
    def test_no_key(self, key_file: Path, content: str | None) -> None:
        if content is not None:
            key_file.write_text(content, encoding="utf-8")
        with pytest.raises(KeyFileUnusableError):
            VpnClient(headscale("0.28.0"), key_file=key_file, hostname="a1").start()

    @pytest.mark.parametrize("served", [False, True])
    def test_refused(self, key_file: Path, served: bool) -> None:
        sim = headscale("0.28.0")
        key_file.write_text("hskey-auth-nonsense", encoding="utf-8")
        with serve(sim) as url:
            client = VpnClient(url if served else sim, key_file=key_file, hostname="a1")
            with pytest.raises(RegistrationRefusedError, match="invalid pre auth key"):
                client.start()

    @every_version
    def test_state_kept(self, version: str, key_file: Path, tmp_path: Path) -> None:
        """The same node comes back, and needs no key."""
        sim = headscale(version)
        key_file.write_text(sim.create_key("svc").key, encoding="utf-8")
        first = VpnClient(sim, key_file=key_file, hostname="a1", state_dir=tmp_path)
        node = first.start()
        first.die()
        key_file.unlink()
        assert VpnClient(sim, key_file=key_file, hostname="a1", state_dir=tmp_path).start() == node

    @every_version
    def test_state_kept_but_node_deleted(self, version: str, key_file: Path, tmp_path: Path) -> None:
        """The same machine as a new node, with the key that is in the file now."""
        sim = headscale(version)
        key_file.write_text(sim.create_key("svc").key, encoding="utf-8")
        client = VpnClient(sim, key_file=key_file, hostname="a1", state_dir=tmp_path)
        machine_key = client.start() and client.machine_key
        sim.delete_node(1)
        with pytest.raises(RegistrationRefusedError, match="used"):
            client.start()
        key_file.write_text(sim.create_key("svc").key, encoding="utf-8")
        assert client.start().node_id == 2
        assert client.machine_key == machine_key

    def test_state_lost(self, key_file: Path) -> None:
        sim = headscale("0.28.0")
        key_file.write_text(sim.create_key("svc", reusable=True).key, encoding="utf-8")
        client = VpnClient(sim, key_file=key_file, hostname="a1")
        assert client.start() != client.start()
        assert len(sim.nodes) == 2

    def test_unclean_death(self, key_file: Path) -> None:
        sim = headscale("0.28.0", offline_grace=timedelta(0))
        key_file.write_text(sim.create_key("svc").key, encoding="utf-8")
        client = VpnClient(sim, key_file=key_file, hostname="a1")
        node = client.start()
        client.die(cleanly=False)
        assert sim.online(node.node_id)

    def test_interface(self, key_file: Path) -> None:
        """Its only addresses are those it has now, and it goes with the client."""
        try:
            put_address("simtest0", "100.64.0.1")
        except OSError as error:
            pytest.skip(f"needs `ip` and CAP_NET_ADMIN: {error}")
        sim = headscale("0.28.0")
        key_file.write_text(sim.create_key("svc").key, encoding="utf-8")
        client = VpnClient(sim, key_file=key_file, hostname="a1", interface="simtest0")
        try:
            client.start()
            client.change_address()
            assert interface_addresses("simtest0") == {"100.64.0.2", "fd7a:115c:a1e0::2"}
        finally:
            client.die()
        assert interface_addresses("simtest0") == set()

    def test_process(self, key_file: Path, repository: Path) -> None:
        sim = headscale("0.28.0", offline_grace=timedelta(0))
        key_file.write_text(sim.create_key("svc").key, encoding="utf-8")
        module = [sys.executable, "-m", "tests.simulators.vpn_client"]
        options = ["--key-file", str(key_file), "--hostname", "a.example.com"]
        with (
            serve(sim) as url,
            subprocess.Popen(
                [*module, "--control", url, *options], cwd=repository, stdout=subprocess.PIPE, text=True
            ) as process,
        ):
            assert process.stdout is not None
            started = json.loads(process.stdout.readline())
            assert started == {"nodeId": 1, "addresses": ["100.64.0.1", "fd7a:115c:a1e0::1"]}
            assert sim.online(1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
            assert not sim.online(1)
