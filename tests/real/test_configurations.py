"""The lifecycle of a pod on servers with other prefixes, policies, databases and proxies than the default."""

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
OTHER_IPV4: Final = "10.77.0.0/16"


def run_pod_lifecycle(workload: Workload, *, ipv6: bool = False) -> None:
    """Start a pod, restart the server, and replace the pod."""
    client, watch = workload.start_pod(ipv6=ipv6)
    before = workload.state()
    workload.server.restart()
    eventually(lambda: workload.server.nodes(workload.name)[0]["online"], "the client to be online")
    watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert workload.state() == before
    assert watch.terminate() == 0

    workload.run_cleanup()
    assert (workload.node_ids, workload.record_contents) == ([], [])
    client.reset()
    client.log_in(workload.key_file)
    workload.start_dns_watch()
    workload.wait_until_published(client, ipv6=ipv6)
    assert int(workload.node_ids[0]) > int(before.node_ids[0])


# --- Prefixes -----------------------------------------------------------------------------------------


def prefixes(**values: str) -> dict[str, Any]:
    return {"prefixes": {"allocation": "sequential", **values}}


@pytest.mark.sample
def test_random_addresses_are_published(release: Release, short_folder: Path) -> None:
    settings = prefixes(v4=IPV4, v6=IPV6, allocation="random")
    with (
        server_with_users(release, short_folder / "server", settings=settings) as server,
        workload_on(server, short_folder / "pod") as workload,
    ):
        run_pod_lifecycle(workload)


@pytest.mark.sample
@pytest.mark.parametrize(
    ("server_settings", "required", "network"),
    [
        pytest.param(prefixes(v6=IPV6), {"DNS_IPV6": "true"}, "fd7a:", id="IPv6 only"),
        pytest.param(
            prefixes(v4=OTHER_IPV4, v6=IPV6), {"VPN_PREFIXES": f"{OTHER_IPV4},{IPV6}"}, "10.77.", id="other prefix"
        ),
    ],
)
def test_addresses_outside_the_default_prefixes_need_a_setting(
    release: Release, short_folder: Path, server_settings: dict[str, Any], required: dict[str, str], network: str
) -> None:
    """Without the setting, nothing is published, and an event names it."""
    with (
        server_with_users(release, short_folder / "server", settings=server_settings) as server,
        workload_on(server, short_folder / "pod") as workload,
    ):
        workload.run_cleanup()
        client = workload.start_client()
        watch = workload.start_dns_watch()
        event = watch.wait_for("address.unpublishable")
        assert all(name in event["reason"] for name in required)
        assert client.address.startswith(network)
        watch.terminate()
        assert workload.cloudflare.writes == []
        client.stop()

        workload.environment |= required
        run_pod_lifecycle(workload, ipv6="DNS_IPV6" in required)
        assert all(content.startswith(network) for content in workload.record_contents)


# --- The policy ---------------------------------------------------------------------------------------


def policy_for(release: Release) -> str:
    """Return a policy in which `USER` owns two tags."""
    # Headscale 0.26 and newer require an @ in the name of a user.
    owner = f"{USER}@" if release.user_by_id else USER
    rule = {"action": "accept", "src": ["*"], "dst": ["*:*"]}
    return json.dumps({"tagOwners": {TAG: [owner], "tag:db": [owner]}, "acls": [rule]})


@pytest.mark.parametrize("mode", ["file", "database"])
def test_tagged_pod_is_published_with_a_policy(release: Release, short_folder: Path, mode: str) -> None:
    """Headscale reads the policy, which has the tag of the key, from a file or from the database."""
    path = short_folder / "policy.json"
    path.write_text(policy_for(release))
    settings = {"policy": {"mode": mode, "path": str(path) if mode == "file" else ""}}
    with (
        server_with_users(release, short_folder / "server", settings=settings) as server,
        workload_on(server, short_folder / "pod", AUTHKEY_TAGS=TAG) as workload,
    ):
        if mode == "database":
            Administrator(server).set_policy(policy_for(release))
        run_pod_lifecycle(workload)
        (node,) = server.nodes(workload.name)
        assert (node.get("tags") or node["forcedTags"]) == [TAG]


@pytest.mark.parametrize("joined_with", ["", TAG], ids=["without tags", "with a tag"])
def test_record_stays_when_an_administrator_changes_the_tags(
    release: Release, short_folder: Path, joined_with: str
) -> None:
    """The program owns a node without a user only while it has a configured tag."""
    path = short_folder / "policy.json"
    path.write_text(policy_for(release))
    settings = {"policy": {"mode": "file", "path": str(path)}}
    with (
        server_with_users(release, short_folder / "server", settings=settings) as server,
        workload_on(server, short_folder / "pod", AUTHKEY_TAGS=joined_with) as workload,
    ):
        administrator = Administrator(server)
        _, watch = workload.start_pod()
        before = workload.state()
        for tags in ((TAG, "tag:db"), ("tag:db",), (TAG,)):
            administrator.tag_node(before.node_ids[0], *tags)
            watch.wait_for_next("pass.finished", changes=0, in_sync=True)
        assert workload.state() == before
        watch.terminate()
        workload.run_cleanup()
        assert (workload.node_ids, workload.record_contents) == ([], [])


# --- PostgreSQL ---------------------------------------------------------------------------------------


def test_pod_lifecycle_with_postgresql(release: Release, short_folder: Path, postgres: PostgresCluster) -> None:
    settings = postgres.create_database(f"life_{release.name}")
    with (
        server_with_users(release, short_folder / "server", settings=settings) as server,
        workload_on(server, short_folder / "pod") as workload,
    ):
        run_pod_lifecycle(workload)


def test_stopped_postgresql_changes_nothing(release: Release, short_folder: Path, postgres: PostgresCluster) -> None:
    """`dns-watch` treats this as an outage, and not as an invalid API key or a deleted node."""
    settings = postgres.create_database(f"outage_{release.name}")
    with (
        server_with_users(release, short_folder / "server", settings=settings) as server,
        workload_on(server, short_folder / "pod", SELF_HEAL="true") as workload,
    ):
        _, watch = workload.start_pod()
        before = workload.state()
        postgres.stop()
        try:
            watch.wait_for_next("pass.failed", upstream="Headscale", failures_in_a_row=3)
        finally:
            postgres.start()
        watch.wait_for_next("pass.finished", changes=0, in_sync=True)
        assert workload.state() == before
        assert {event["error_type"] for event in watch.events_named("pass.failed")} == {"TransientError"}
        assert watch.events_named("node.lost") == []


# --- nginx --------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(short_folder: Path) -> TlsProxy:
    """A proxy that has not been started."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx: as root, scripts/bootstrap --system")
    (short_folder / "proxy").mkdir()
    return TlsProxy(short_folder / "proxy")


@pytest.mark.sample
def test_error_responses_of_a_tls_proxy_change_nothing(release: Release, short_folder: Path, proxy: TlsProxy) -> None:
    """The proxy has a certificate of a private authority, and sometimes responds in place of Headscale."""
    with (
        proxy,
        server_with_users(release, short_folder / "server", public_url=proxy.url) as server,
        workload_on(
            server, short_folder / "pod", HEADSCALE_CA_FILE=str(proxy.certificate), SELF_HEAL="true"
        ) as workload,
    ):
        proxy.forward_to(server.url)
        run_pod_lifecycle(workload)
        (watch,) = [watch for watch in workload.watches if watch.exit_status is None]
        before = workload.state()
        for fault in FAULTS:
            proxy.respond_with(fault)
            watch.wait_for_next("pass.failed", upstream="Headscale", failures_in_a_row=3)
            proxy.forward_to(server.url)
            watch.wait_for_next("pass.finished", changes=0, in_sync=True)
        assert workload.state() == before
        assert watch.events_named("node.lost") == []
