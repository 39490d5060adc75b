"""Run pods in a real cluster with a real Headscale: requests, deleted pods and nodes, killed processes, and a reboot.

One pod, of deploy/services/grafana, keeps its node when it is replaced. The other pod gets its containers by injection,
and registers a new node when it is replaced. The tests run in the order of this file, on the same pods.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.cluster.api_server import RefusedError
from tests.cluster.cluster import Document
from tests.cluster.tailnet import Tailnet
from tests.cluster.workloads import (
    GRAFANA_NAME,
    GRAFANA_POD,
    POD_WITHOUT_VPN,
    WIKI_NAME,
    container_id,
    ready_wiki_pod,
    response_to,
    wait_for_response,
)
from tests.pod.rendering import DOMAIN, RECORD_COMMENT, USER
from tests.real.programs import eventually

RECOVERY_TIMEOUT_S = 480.0
"""The time limit for recovery, which takes about two minutes: one to confirm the loss, and one for the restart."""


@pytest.fixture(autouse=True)
def _pods(grafana: str, wiki: str, client_pods: None) -> None:
    """Start the pods for all tests in this module."""


@pytest.mark.parametrize("name", [GRAFANA_NAME, WIKI_NAME])
def test_pod_has_a_node_and_a_record(tailnet: Tailnet, name: str) -> None:
    node = tailnet.wait_for_published_node(name)
    (record,) = tailnet.records(name)
    assert (record.type, record.comment, record.proxied) == ("A", RECORD_COMMENT, False)
    assert (node["user"]["name"], node["given_name"]) == (USER, name.replace(".", "-"))


def test_vpn_client_reaches_both_pods(tailnet: Tailnet) -> None:
    wait_for_response(tailnet, f"http://{WIKI_NAME}/")
    wait_for_response(tailnet, f"https://{GRAFANA_NAME}/api/health")


def test_pod_outside_the_vpn_gets_403(tailnet: Tailnet) -> None:
    address = tailnet.cluster.get("pod", GRAFANA_POD)["status"]["podIP"]
    for scheme in ("http", "https"):
        assert "403" in response_to(tailnet, POD_WITHOUT_VPN, f"{scheme}://{address}/api/health")


def test_tailscale_reports_no_missing_privileges(tailnet: Tailnet) -> None:
    """NET_ADMIN lets tailscale create its packet filter."""
    log = tailnet.cluster.logs(GRAFANA_POD, "tailscale").lower()
    assert "netfilter running in nftables mode" in log
    assert "permission denied" not in log
    assert "operation not permitted" not in log


def test_replaced_pod_keeps_its_node(tailnet: Tailnet) -> None:
    cluster = tailnet.cluster
    pod, node = cluster.get("pod", GRAFANA_POD), tailnet.wait_for_published_node(GRAFANA_NAME)
    cluster.kubectl("-n", "services", "delete", "pod", GRAFANA_POD)
    cluster.wait_for_pod(GRAFANA_POD, not_uid=pod["metadata"]["uid"])
    after = tailnet.wait_for_published_node(GRAFANA_NAME)
    assert (after["id"], after["ip_addresses"]) == (node["id"], node["ip_addresses"])
    wait_for_response(tailnet, f"https://{GRAFANA_NAME}/api/health")


def test_replaced_injected_pod_gets_a_new_node_with_the_same_name(tailnet: Tailnet) -> None:
    pod, node = ready_wiki_pod(tailnet), tailnet.wait_for_published_node(WIKI_NAME)
    tailnet.cluster.kubectl("-n", "services", "delete", "pod", pod["metadata"]["name"])
    ready_wiki_pod(tailnet, not_uid=pod["metadata"]["uid"])
    after = tailnet.wait_for_published_node(WIKI_NAME)
    assert after["id"] != node["id"]
    assert after["given_name"] == node["given_name"]
    wait_for_response(tailnet, f"http://{WIKI_NAME}/")


def test_killed_tailscale_restarts_with_the_same_node(tailnet: Tailnet) -> None:
    cluster = tailnet.cluster
    node = tailnet.wait_for_published_node(GRAFANA_NAME)
    before = container_id(cluster.get("pod", GRAFANA_POD), "tailscale")
    cluster.exec(GRAFANA_POD, "tailscale", "killall", "-9", "tailscaled")
    eventually(
        lambda: container_id(cluster.get("pod", GRAFANA_POD), "tailscale") not in ("", before),
        "a restart",
        details=lambda: cluster.describe_pod(GRAFANA_POD),
        timeout_s=RECOVERY_TIMEOUT_S,
    )
    cluster.wait_for_pod(GRAFANA_POD)
    assert tailnet.wait_for_published_node(GRAFANA_NAME)["id"] == node["id"]
    wait_for_response(tailnet, f"https://{GRAFANA_NAME}/api/health")


def test_pods_recover_when_their_nodes_are_deleted_in_headscale(tailnet: Tailnet) -> None:
    """The test deletes both nodes at the same time, because dns-watch needs a minute to confirm a loss."""
    names = (GRAFANA_NAME, WIKI_NAME)
    deleted = {name: tailnet.wait_for_published_node(name)["id"] for name in names}
    for node_id in deleted.values():
        tailnet.run_headscale("nodes", "delete", "--identifier", str(node_id), "--force")

    def have_new_nodes() -> bool:
        return all([node["id"] for node in tailnet.nodes(name)] not in ([], [deleted[name]]) for name in names)

    eventually(
        have_new_nodes,
        "new nodes",
        details=lambda: tailnet.cluster.logs(GRAFANA_POD, "dns-watch", "services", "--tail=30"),
        timeout_s=RECOVERY_TIMEOUT_S,
    )
    for name in names:
        tailnet.wait_for_published_node(name)
    wait_for_response(tailnet, f"https://{GRAFANA_NAME}/api/health")
    events = {event["event"] for event in tailnet.cluster.events(GRAFANA_POD, "dns-watch")}
    assert {"node.lost", "restart.requested"} <= events


def test_pods_recover_after_a_reboot_of_the_cluster_node(tailnet: Tailnet) -> None:
    """All processes end, as after a power failure. The kubelet starts the containers of its pods again."""
    cluster = tailnet.cluster
    nodes = {name: tailnet.wait_for_published_node(name) for name in (GRAFANA_NAME, WIKI_NAME)}
    names = (GRAFANA_POD, ready_wiki_pod(tailnet)["metadata"]["name"])
    before = {name: container_id(cluster.get("pod", name), "dns-watch") for name in names}
    cluster.node.reboot()
    eventually(
        lambda: all(container_id(cluster.get("pod", name), "dns-watch") not in ("", before[name]) for name in names),
        "new containers",
        details=lambda: "\n".join(map(cluster.describe_pod, names)),
        timeout_s=RECOVERY_TIMEOUT_S,
    )
    for name in names:
        cluster.wait_for_pod(name)
    for name, node in nodes.items():
        after = tailnet.wait_for_published_node(name)
        assert after["given_name"] == node["given_name"]
    assert tailnet.wait_for_published_node(GRAFANA_NAME)["id"] == nodes[GRAFANA_NAME]["id"]
    wait_for_response(tailnet, f"https://{GRAFANA_NAME}/api/health")
    wait_for_response(tailnet, f"http://{WIKI_NAME}/")


@pytest.fixture
def orphan(tailnet: Tailnet) -> Iterator[str]:
    """The name of a record with the program's comment, for which no node exists."""
    name = f"gone.{DOMAIN}"
    record = tailnet.cloudflare.add_record(
        tailnet.zone_id, type="A", name=name, content="100.64.9.9", comment=RECORD_COMMENT
    )
    yield name
    if tailnet.records(name):
        tailnet.cloudflare.remove_record(record)


@pytest.fixture
def cron_job(tailnet: Tailnet) -> Iterator[str]:
    """The argument of kubectl for the CronJob of deploy/prune."""
    tailnet.cluster.kubectl("-n", "services", "apply", "-k", tailnet.deploy_folder / "prune")
    yield "cronjob/lifecycle-prune"
    tailnet.cluster.kubectl("-n", "services", "delete", "-k", tailnet.deploy_folder / "prune")


def test_prune_waits_before_it_deletes_orphaned_records(tailnet: Tailnet, orphan: str, cron_job: str) -> None:
    """Without `--name`, prune waits a quarter of an hour before it deletes. The test does not wait for this."""
    cluster = tailnet.cluster
    cluster.kubectl("-n", "services", "create", "job", "prune-now", f"--from={cron_job}")
    try:
        (waiting,) = eventually(
            lambda: job_events(tailnet, "prune-now", "prune.waiting") or None,
            "prune to wait",
            details=lambda: cluster.kubectl("-n", "services", "describe", "pod", "-l", "job-name=prune-now"),
            timeout_s=RECOVERY_TIMEOUT_S,
        )
        assert waiting["workloads"] == [orphan]
    finally:
        cluster.kubectl("-n", "services", "delete", "job", "prune-now")
    assert tailnet.records(orphan)


def test_prune_of_one_workload_deletes_nothing_else(tailnet: Tailnet, orphan: str, cron_job: str) -> None:
    cluster = tailnet.cluster
    text = cluster.kubectl(
        *("-n", "services", "create", "job", "prune-one", f"--from={cron_job}", "--dry-run=client", "-o", "json")
    )
    job = json.loads(text)
    job["spec"]["template"]["spec"]["containers"][0]["args"] += ["--name", orphan]
    cluster.kubectl("create", "-f", "-", text=json.dumps(job))
    try:
        eventually(
            lambda: job_events(tailnet, "prune-one", "pass.finished") or None,
            "the end of prune",
            details=lambda: cluster.kubectl("-n", "services", "logs", "job/prune-one"),
            timeout_s=RECOVERY_TIMEOUT_S,
        )
    finally:
        cluster.kubectl("-n", "services", "delete", "job", "prune-one")
    assert tailnet.records(orphan) == []
    for name in (GRAFANA_NAME, WIKI_NAME):
        tailnet.wait_for_published_node(name)


def job_events(tailnet: Tailnet, job: str, name: str) -> list[Document]:
    """Return the events with this name that a Job has logged; [] if it has not started."""
    with suppress(RefusedError):
        lines = tailnet.cluster.kubectl("-n", "services", "logs", f"job/{job}").splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]
    return []
