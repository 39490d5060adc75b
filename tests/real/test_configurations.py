"""The life of a pod on servers with other databases, prefixes, policies and proxies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from tests.real.administrator import Administrator
from tests.real.postgres import PostgresCluster
from tests.real.programs import Release, eventually
from tests.real.proxy import FAULTS, TlsProxy
from tests.real.workload import USER, Workload, server_with_users, workload_on

TAG: Final = "tag:web"
IPV4: Final = "100.64.0.0/10"
IPV6: Final = "fd7a:115c:a1e0::/48"
OWN_IPV4: Final = "10.77.0.0/16"


def live(workload: Workload, *, ipv6: bool = False) -> None:
    """Start a pod, restart the server, and replace the pod."""
    workload.cleanup()
    machine = workload.machine()
    watch = workload.watch()
    workload.wait_until_published(machine, ipv6=ipv6)
    before = workload.ids, workload.contents, len(workload.cloudflare.writes)
    workload.server.restart()
    eventually(lambda: workload.server.nodes(workload.name)[0]["online"], "the client to be online")
    watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert (workload.ids, workload.contents, len(workload.cloudflare.writes)) == before
    assert watch.terminate() == 0

    workload.cleanup()
    assert (workload.ids, workload.contents) == ([], [])
    machine.reset()
    machine.up(workload.key_file)
    workload.watch()
    workload.wait_until_published(machine, ipv6=ipv6)
    assert int(workload.ids[0]) > int(before[0][0])


# --- Prefixes -----------------------------------------------------------------------------------------


def prefixes(**values: str) -> dict[str, Any]:
    return {"prefixes": {"allocation": "sequential", **values}}


@pytest.mark.sample
def test_random_allocation(release: Release, short_folder: Path) -> None:
    settings = prefixes(v4=IPV4, v6=IPV6, allocation="random")
    with (
        server_with_users(release, short_folder / "server", settings=settings) as server,
        workload_on(server, short_folder / "pod") as workload,
    ):
        live(workload, ipv6=False)


@pytest.mark.sample
@pytest.mark.parametrize(
    ("server_settings", "missing", "network"),
    [
        pytest.param(prefixes(v6=IPV6), {"DNS_IPV6": "true"}, "fd7a:", id="IPv6 only"),
        pytest.param(
            prefixes(v4=OWN_IPV4, v6=IPV6), {"VPN_PREFIXES": f"{OWN_IPV4},{IPV6}"}, "10.77.", id="prefix of its own"
        ),
    ],
)
def test_addresses_outside_the_default_prefixes_need_a_setting(
    release: Release, short_folder: Path, server_settings: dict[str, Any], missing: dict[str, str], network: str
) -> None:
    """Without it, nothing is published, and the event names the setting."""
    with (
        server_with_users(release, short_folder / "server", settings=server_settings) as server,
        workload_on(server, short_folder / "pod") as workload,
    ):
        workload.cleanup()
        machine = workload.machine()
        watch = workload.watch()
        event = watch.wait_for("address.unpublishable")
        assert all(name in event["reason"] for name in missing)
        assert machine.address.startswith(network)
        watch.terminate()
        assert workload.cloudflare.writes == []
        machine.stop()

        workload.environment |= missing
        live(workload, ipv6="DNS_IPV6" in missing)
        assert all(content.startswith(network) for content in workload.contents)


# --- The policy ---------------------------------------------------------------------------------------


def policy_for(release: Release) -> str:
    """Return a policy in which `USER` owns two tags. From 0.26 on, the name of a user has an @."""
    owner = f"{USER}@" if release.user_by_id else USER
    rule = {"action": "accept", "src": ["*"], "dst": ["*:*"]}
    return json.dumps({"tagOwners": {TAG: [owner], "tag:db": [owner]}, "acls": [rule]})


@pytest.mark.parametrize("mode", ["file", "database"])
def test_policy(release: Release, short_folder: Path, mode: str) -> None:
    """A policy that knows the tag of the keys, in a file or in the database."""
    path = short_folder / "policy.json"
    path.write_text(policy_for(release))
    settings = {"policy": {"mode": mode, "path": str(path) if mode == "file" else ""}}
    with (
        server_with_users(release, short_folder / "server", settings=settings) as server,
        workload_on(server, short_folder / "pod", AUTHKEY_TAGS=TAG) as workload,
    ):
        if mode == "database":
            Administrator(server).set_policy(policy_for(release))
        live(workload)
        (node,) = server.nodes(workload.name)
        assert (node.get("tags") or node["forcedTags"]) == [TAG]


@pytest.mark.parametrize("joined_with", ["", TAG], ids=["without tags", "with a tag"])
def test_administrator_changes_the_tags_of_a_node(release: Release, short_folder: Path, joined_with: str) -> None:
    """The record remains. Without a user, the node belongs to this program only while it has one of its tags."""
    path = short_folder / "policy.json"
    path.write_text(policy_for(release))
    settings = {"policy": {"mode": "file", "path": str(path)}}
    with (
        server_with_users(release, short_folder / "server", settings=settings) as server,
        workload_on(server, short_folder / "pod", AUTHKEY_TAGS=joined_with) as workload,
    ):
        administrator = Administrator(server)
        workload.cleanup()
        machine = workload.machine()
        watch = workload.watch()
        workload.wait_until_published(machine)
        ids, written = workload.ids, len(workload.cloudflare.writes)
        for tags in ((TAG, "tag:db"), ("tag:db",), (TAG,)):
            administrator.tag_node(ids[0], *tags)
            watch.wait_for_next("pass.finished", changes=0, in_sync=True)
        assert (workload.ids, len(workload.cloudflare.writes)) == (ids, written)
        watch.terminate()
        workload.cleanup()
        assert (workload.ids, workload.contents) == ([], [])


# --- PostgreSQL ---------------------------------------------------------------------------------------


def test_postgresql(release: Release, short_folder: Path, postgres: PostgresCluster) -> None:
    settings = postgres.create_database(f"life_{release.name}")
    with (
        server_with_users(release, short_folder / "server", settings=settings) as server,
        workload_on(server, short_folder / "pod") as workload,
    ):
        live(workload)


def test_stopped_postgresql_is_an_outage(release: Release, short_folder: Path, postgres: PostgresCluster) -> None:
    """The API key counts as valid, the node as registered, and nothing is written, until the database is back."""
    settings = postgres.create_database(f"outage_{release.name}")
    with (
        server_with_users(release, short_folder / "server", settings=settings) as server,
        workload_on(server, short_folder / "pod", SELF_HEAL="true") as workload,
    ):
        workload.cleanup()
        machine = workload.machine()
        watch = workload.watch()
        workload.wait_until_published(machine)
        before = workload.ids, workload.key_file.read_text(), len(workload.cloudflare.writes)
        postgres.stop()
        try:
            watch.wait_for_next("pass.failed", upstream="Headscale", failures_in_a_row=3)
        finally:
            postgres.start()
        watch.wait_for_next("pass.finished", changes=0, in_sync=True)
        assert (workload.ids, workload.key_file.read_text(), len(workload.cloudflare.writes)) == before
        assert {event["error_type"] for event in watch.named("pass.failed")} == {"TransientError"}
        assert watch.named("node.lost") == []


# --- nginx --------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(short_folder: Path) -> TlsProxy:
    """A proxy that is not running yet."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx: as root, scripts/bootstrap --system")
    (short_folder / "proxy").mkdir()
    return TlsProxy(short_folder / "proxy")


@pytest.mark.sample
def test_tls_proxy_with_a_private_authority(release: Release, short_folder: Path, proxy: TlsProxy) -> None:
    """A proxy that responds in place of Headscale has no effect on node, key and record."""
    with (
        proxy,
        server_with_users(release, short_folder / "server", public_url=proxy.url) as server,
        workload_on(
            server, short_folder / "pod", HEADSCALE_CA_FILE=str(proxy.certificate), SELF_HEAL="true"
        ) as workload,
    ):
        proxy.forward_to(server.url)
        live(workload)
        (watch,) = [watch for watch in workload.watches if watch.exit_status is None]
        before = workload.ids, workload.key_file.read_text(), len(workload.cloudflare.writes)
        for fault in FAULTS:
            proxy.respond_with(fault)
            watch.wait_for_next("pass.failed", upstream="Headscale", failures_in_a_row=3)
            proxy.forward_to(server.url)
            watch.wait_for_next("pass.finished", changes=0, in_sync=True)
        assert (workload.ids, workload.key_file.read_text(), len(workload.cloudflare.writes)) == before
        assert watch.named("node.lost") == []
