"""Test the lifecycle of a pod with Headscale servers that have an unusual configuration.

The servers have other IP prefixes or a policy, use PostgreSQL, or run behind nginx.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from tests.real.administrator import Administrator
from tests.real.conftest import StartWorkload
from tests.real.postgres import PostgresCluster
from tests.real.programs import Release, eventually
from tests.real.proxy import FAULTS, TlsProxy
from tests.real.workload import USER, Workload

TAG: Final = "tag:web"
IPV4: Final = "100.64.0.0/10"
IPV6: Final = "fd7a:115c:a1e0::/48"
OTHER_IPV4: Final = "10.77.0.0/16"


def run_pod_lifecycle(workload: Workload, *, ipv6: bool = False) -> None:
    """Start a pod, restart the server, and replace the pod. Check nodes and records after each step."""
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


@pytest.mark.four_releases
def test_random_addresses_are_published(start_workload: StartWorkload) -> None:
    run_pod_lifecycle(start_workload(prefixes(v4=IPV4, v6=IPV6, allocation="random")))


@pytest.mark.four_releases
@pytest.mark.parametrize(
    ("server_settings", "required_settings", "address_start"),
    [
        pytest.param(prefixes(v6=IPV6), {"DNS_IPV6": "true"}, "fd7a:", id="IPv6 only"),
        pytest.param(
            prefixes(v4=OTHER_IPV4, v6=IPV6), {"VPN_PREFIXES": f"{OTHER_IPV4},{IPV6}"}, "10.77.", id="other prefix"
        ),
    ],
)
def test_addresses_outside_the_default_prefixes_need_a_setting(
    start_workload: StartWorkload,
    server_settings: dict[str, Any],
    required_settings: dict[str, str],
    address_start: str,
) -> None:
    """Without the setting, no address is published, and an event names the setting."""
    workload = start_workload(server_settings)
    workload.run_cleanup()
    client = workload.start_client()
    watch = workload.start_dns_watch()
    event = watch.wait_for("address.unpublishable")
    assert all(name in event["reason"] for name in required_settings)
    assert client.address.startswith(address_start)
    watch.terminate()
    assert workload.cloudflare.writes == []
    client.stop()

    workload.environment |= required_settings
    run_pod_lifecycle(workload, ipv6="DNS_IPV6" in required_settings)
    assert all(content.startswith(address_start) for content in workload.record_contents)


# --- The policy ---------------------------------------------------------------------------------------


def policy_for(release: Release) -> str:
    """Return a policy in which `USER` owns two tags."""
    # In a policy of Headscale 0.26 and newer, a user name must contain an @. A name without an @ gets one at its end.
    owner = f"{USER}@" if release.identifies_users_by_id else USER
    rule = {"action": "accept", "src": ["*"], "dst": ["*:*"]}
    return json.dumps({"tagOwners": {TAG: [owner], "tag:db": [owner]}, "acls": [rule]})


@pytest.mark.parametrize("mode", ["file", "database"])
def test_tagged_pod_is_published_with_a_policy(
    release: Release, temporary_folder: Path, start_workload: StartWorkload, mode: str
) -> None:
    """The policy contains the tag of the pre-auth key. Headscale reads the policy from a file or from the database."""
    path = temporary_folder / "policy.json"
    path.write_text(policy_for(release))
    workload = start_workload({"policy": {"mode": mode, "path": str(path) if mode == "file" else ""}}, AUTHKEY_TAGS=TAG)
    if mode == "database":
        Administrator(workload.server).set_policy(policy_for(release))
    run_pod_lifecycle(workload)
    (node,) = workload.server.nodes(workload.name)
    assert (node.get("tags") or node["forcedTags"]) == [TAG]


@pytest.mark.parametrize("key_tag", ["", TAG], ids=["key without tags", "key with a tag"])
def test_record_stays_when_an_administrator_changes_the_tags(
    release: Release, temporary_folder: Path, start_workload: StartWorkload, key_tag: str
) -> None:
    path = temporary_folder / "policy.json"
    path.write_text(policy_for(release))
    workload = start_workload({"policy": {"mode": "file", "path": str(path)}}, AUTHKEY_TAGS=key_tag)
    _, watch = workload.start_pod()
    before = workload.state()
    # A node that registered with a tagged key can lack a user. `cleanup` deletes such a node only if it has the tag of
    # the key, so the last change restores this tag.
    for tags in ((TAG, "tag:db"), ("tag:db",), (TAG,)):
        Administrator(workload.server).tag_node(before.node_ids[0], *tags)
        watch.wait_for_next("pass.finished", changes=0, in_sync=True)
    assert workload.state() == before
    watch.terminate()
    workload.run_cleanup()
    assert (workload.node_ids, workload.record_contents) == ([], [])


# --- PostgreSQL ---------------------------------------------------------------------------------------


def test_pod_lifecycle_with_postgresql(
    release: Release, start_workload: StartWorkload, postgres: PostgresCluster
) -> None:
    run_pod_lifecycle(start_workload(postgres.create_database(f"life_{release.name}")))


def test_stopped_postgresql_changes_nothing(
    release: Release, start_workload: StartWorkload, postgres: PostgresCluster
) -> None:
    """`dns-watch` treats the errors as an outage of Headscale, and not as an invalid API key or a deleted node."""
    workload = start_workload(postgres.create_database(f"outage_{release.name}"), SELF_HEAL="true")
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


@pytest.mark.four_releases
def test_error_responses_of_a_tls_proxy_change_nothing(temporary_folder: Path, start_workload: StartWorkload) -> None:
    """The proxy has a certificate of a private authority. During each fault, it responds in place of Headscale."""
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx: as root, scripts/bootstrap --system")
    (temporary_folder / "proxy").mkdir()
    with TlsProxy(temporary_folder / "proxy") as proxy:
        workload = start_workload(public_url=proxy.url, HEADSCALE_CA_FILE=str(proxy.certificate), SELF_HEAL="true")
        proxy.forward_to(workload.server.url)
        run_pod_lifecycle(workload)
        (watch,) = [watch for watch in workload.watches if watch.exit_status is None]
        before = workload.state()
        for fault in FAULTS:
            proxy.respond_with(fault)
            watch.wait_for_next("pass.failed", upstream="Headscale", failures_in_a_row=3)
            proxy.forward_to(workload.server.url)
            watch.wait_for_next("pass.finished", changes=0, in_sync=True)
        assert workload.state() == before
        assert watch.events_named("node.lost") == []
