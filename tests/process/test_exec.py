"""Test commands as processes in a pod that uses the Kubernetes API, to reach Headscale over exec if no URL is set."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import httpx
import pytest
import yaml

from tests import releases
from tests.builders import NAME, OUR_COMMENT
from tests.clients.kubeconfigs import a_kubeconfig
from tests.in_cluster import HEADSCALE_NAMESPACE, NAMESPACE, STATE_SECRET, may_read
from tests.pages import blocks
from tests.pod.rendering import DEPLOY, of_kind, render
from tests.process.cluster import Authority, ClusterPod, require_mount_namespace
from tests.process.commands import HANG_TIMEOUT_S, PROGRAM
from tests.process.test_commands import SIDECAR_SETTINGS, logs_events_only, run_all_commands
from tests.simulators import faults
from tests.simulators.dialects import VERSIONS
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.headscale_cli import Finished
from tests.simulators.kubernetes import ExecFault
from tests.simulators.proxy import ProxySimulator

MakePod = Callable[..., ClusterPod]

API_KEY_SECRET = "headscale-api-key"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    require_mount_namespace()
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def make_pod(
    authority: Authority, clean_environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakePod]:
    """Return a function that creates a pod in a cluster whose Headscale has this version and the user `svc`."""
    with ExitStack() as stack:

        def make(version: str = "0.28.0") -> ClusterPod:
            headscale = HeadscaleSimulator(version)
            headscale.add_user("svc")
            return ClusterPod(
                headscale,
                authority=authority,
                environment=clean_environment,
                working_directory=tmp_path_factory.mktemp("pod"),
                stack=stack,
            )

        yield make


@pytest.fixture
def pod(make_pod: MakePod) -> ClusterPod:
    return make_pod()


def use_api_key_secret(pod: ClusterPod) -> None:
    """Configure the pod to reach Headscale by URL, with an API key from a Secret."""
    pod.environment |= {"HEADSCALE_URL": pod.headscale_url, "HEADSCALE_API_KEY_SECRET": API_KEY_SECRET}
    pod.kubernetes.allow(HEADSCALE_NAMESPACE, may_read(API_KEY_SECRET))
    pod.kubernetes.put_secret(HEADSCALE_NAMESPACE, API_KEY_SECRET, {"api-key": f"{pod.headscale.api_key}\n"})


# --- All commands --------------------------------------------------------------------------------------


# The default tier runs only the first case, so the newest release is first.
@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize("version", VERSIONS[::-1])
def test_all_commands_with_each_headscale_release(make_pod: MakePod, version: str) -> None:
    pod = make_pod(version)
    context = run_all_commands(pod)
    assert context["kubernetes"].startswith("in-cluster, https://127.0.0.1:")
    assert context["headscale_version"] == version
    assert pod.headscale.requests
    # These requests are from the simulated `headscale` command. The program itself would also request /version.
    assert all(exchange.path.startswith("/api/") for exchange in pod.headscale.requests)


def set_up_events(pod: ClusterPod) -> dict[str, str]:
    """Add a node, allow the pod to write Events, and return settings with which it uses Kubernetes only for Events."""
    [role] = of_kind(render(DEPLOY / "rbac/events"), "Role")
    pod.kubernetes.allow(NAMESPACE, *role["rules"])
    pod.headscale.add_node(NAME, user="svc")
    api = {"HEADSCALE_URL": pod.headscale_url, "HEADSCALE_API_KEY": pod.headscale.api_key}
    return {**SIDECAR_SETTINGS, **api, "KUBERNETES_EVENTS": "true", "LOG_LEVEL": "error", "TAILSCALE_INTERFACE": ""}


def test_events_are_written_at_any_log_level(pod: ClusterPod) -> None:
    result = pod.run("dns-watch", "--once", **set_up_events(pod))
    assert (result.status, result.stdout, result.stderr) == (0, "", "")
    assert [event["reason"] for event in pod.kubernetes.events.values()] == ["RecordCreated"]


def test_event_that_cannot_be_written_delays_neither_a_pass_nor_the_stop(pod: ClusterPod) -> None:
    pod.kubernetes.faults.add(faults.hang(limit_s=3600), times=None)
    running = pod.start("dns-watch", **set_up_events(pod) | {"HTTP_TIMEOUT": "1h", "LOG_LEVEL": "info"})
    assert running.wait_for_event("pass.finished")["in_sync"]
    result = running.stop()
    assert (result.status, result.stderr) == (0, "")
    assert result.last_event["event"] == "stop.requested"
    pod.kubernetes.faults.release()


@pytest.mark.parametrize("arguments", [("status", "--output", "json"), ("--output", "json", "status")], ids=" ".join)
def test_status_needs_the_same_permissions_as_dns_watch(pod: ClusterPod, arguments: tuple[str, ...]) -> None:
    """The pod has only the permissions of dns-watch. The option --output may also be before the command."""
    pod.add_workload()
    result = pod.run(*arguments, **SIDECAR_SETTINGS)
    assert (result.status, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert [row["state"] for row in report["workloads"]] == ["in sync"]
    # No API key is used with `exec`.
    assert report["context"]["api_key_expires_at"] is None
    assert pod.has_no_writes


@pytest.mark.full
def test_sidecar_without_the_key_volume_publishes_its_node(make_pod: MakePod) -> None:
    """Each `dns-watch` waits up to 30 s for a VPN interface, so the pods run concurrently."""
    pods = [make_pod(version) for version in releases.DEFAULT]
    running = []
    for pod in pods:
        pod.headscale.add_node(NAME, user="svc")
        del pod.environment["AUTHKEY_OUTPUT_PATH"]
        running.append(pod.start("dns-watch", "--once", **SIDECAR_SETTINGS))
    for pod, process in zip(pods, running, strict=True):
        result = process.wait()
        assert result.status == 0, result.stdout
        assert pod.records() == {f"A {pod.headscale.nodes[0].address}": OUR_COMMENT}
        assert logs_events_only(result)


# --- Faults -------------------------------------------------------------------------------------------


def test_hanging_exec_does_not_delay_a_stop(pod: ClusterPod) -> None:
    is_executed = Event()

    def run_headscale(argv: Sequence[str]) -> Finished:
        is_executed.set()
        return pod.headscale_cli(argv)

    [headscale] = pod.kubernetes.pods
    pod.kubernetes.change_pod(headscale, containers={"headscale": {"headscale": run_headscale}})
    pod.kubernetes.add_exec_fault(ExecFault(hang=True), times=None)
    # A stopped cleanup exits with 1, because its work is not done.
    for command, status in (("dns-watch", 0), ("cleanup", 1)):
        is_executed.clear()
        running = pod.start(command, **SIDECAR_SETTINGS)
        assert is_executed.wait(HANG_TIMEOUT_S)
        assert running.stop().status == status


def test_configured_pod_and_container_are_used(pod: ClusterPod) -> None:
    """Only the container `server` of the pod `control-0` has a `headscale` program."""
    [default_pod] = pod.kubernetes.pods
    pod.kubernetes.change_pod(default_pod, containers={"headscale": {}})
    pod.kubernetes.add_pod(
        "control-0",
        {"headscale": {}, "server": {"headscale": pod.headscale_cli}},
        namespace=HEADSCALE_NAMESPACE,
        labels={"tier": "control"},
    )
    result = pod.run("cleanup", HEADSCALE_POD_SELECTOR="tier=control", HEADSCALE_CONTAINER="server")
    assert result.status == 0, result.stdout
    assert pod.key_file.exists()


@pytest.mark.full
def test_http_timeout_applies_to_a_headscale_command(pod: ClusterPod) -> None:
    pod.kubernetes.add_exec_fault(ExecFault(hang=True), "users list")
    result = pod.run("cleanup", HTTP_TIMEOUT="2s")
    assert result.status == 0, result.stdout
    [retry] = result.events_named("retry.scheduled")
    assert "within 2 s" in retry["error"]


def test_headscale_commands_are_counted_as_requests(pod: ClusterPod) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    running = pod.start("dns-watch", HEALTH_PORT=str(port), HEALTH_ADDRESS="127.0.0.1", TAILSCALE_INTERFACE="")
    running.wait_for_event("pass.skipped")
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    assert running.stop().status == 0
    assert re.search(r'requests_total\{outcome="ok",upstream="Headscale"\} [1-9]', metrics), metrics


@pytest.mark.parametrize("command", ["--dry-run", "cleanup", "dns-watch --once"])
def test_kubernetes_client_is_not_imported_unless_used(pod: ClusterPod, command: str) -> None:
    pod.environment |= {"HEADSCALE_URL": pod.headscale_url, "HEADSCALE_API_KEY": pod.headscale.api_key}
    pod.environment |= {"KUBERNETES_SERVICE_HOST": "", "PYTHONPROFILEIMPORTTIME": "1"}
    if command.startswith("dns-watch"):
        pod.headscale.add_node(NAME, user="svc")
    result = pod.start_command(PROGRAM, *command.split(), TAILSCALE_INTERFACE="").wait()
    assert result.status == 0, result.stderr
    # Python prints "import time: … | … | module" for each import.
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "httpx" in imported
    assert {"kubernetes", "websocket", "urllib3", "yaml"} & imported == set()


# --- The API key's Secret -----------------------------------------------------------------------------


def test_api_key_secret_is_read_and_exec_is_not_used(pod: ClusterPod) -> None:
    use_api_key_secret(pod)
    result = pod.run("cleanup")
    assert result.status == 0, result.stdout
    assert pod.kubernetes.commands == []
    assert pod.secrets_in(result.output) == []


@pytest.mark.full
def test_rotated_api_key_needs_no_restart(pod: ClusterPod) -> None:
    """Headscale refuses the old key, the Secret is read again, and the pass succeeds."""
    use_api_key_secret(pod)
    pod.headscale.add_node(NAME, user="svc")
    watch = pod.start("dns-watch", TAILSCALE_INTERFACE="", POLL_INTERVAL="1s", **SIDECAR_SETTINGS)
    watch.wait_for_event("pass.finished")
    key = pod.headscale.rotate_api_key()
    pod.kubernetes.put_secret(HEADSCALE_NAMESPACE, API_KEY_SECRET, {"api-key": key})
    for _ in range(3):
        assert watch.wait_for_event("pass.finished")["in_sync"]
    result = watch.stop()
    assert result.status == 0
    assert result.events_named("pass.failed") == []
    assert pod.secrets_in(result.output) == []


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize("state", ["missing Secret", "missing permission"])
def test_unreadable_api_key_secret_is_reported(state: str, pod: ClusterPod) -> None:
    use_api_key_secret(pod)
    if state == "missing Secret":
        pod.kubernetes.delete_secret(HEADSCALE_NAMESPACE, API_KEY_SECRET)
    else:
        pod.kubernetes.allow_nothing()
    result = pod.run("cleanup")
    expected = "HEADSCALE_API_KEY_SECRET: Secret" if state == "missing Secret" else f"resourceNames: [{API_KEY_SECRET}]"
    assert (result.status, result.last_event["error_type"]) == (1, "AuthError")
    assert expected in result.last_event["error"]
    assert pod.has_no_writes


# --- NODE_POLICY=keep ---------------------------------------------------------------------------------


@pytest.mark.full
def test_cleanup_keeps_the_node_in_the_state_secret_and_its_record(pod: ClusterPod) -> None:
    """tailscale's state Secret is in the pod's namespace, whose name is in a file of the service account."""
    pod.add_leftovers()
    [node] = pod.headscale.nodes
    pod.kubernetes.allow(NAMESPACE, may_read(STATE_SECRET))
    pod.kubernetes.put_secret(NAMESPACE, STATE_SECRET, {"device_id": str(node.id)})
    result = pod.run("cleanup", NODE_POLICY="keep", TS_KUBE_SECRET=STATE_SECRET)
    assert result.status == 0, result.stdout
    assert [kept.id for kept in pod.headscale.nodes] == [node.id]
    pod.headscale.connect(node.id)
    watched = pod.run("dns-watch", "--once", **SIDECAR_SETTINGS)
    assert watched.status == 0, watched.stdout
    assert pod.records() == {f"A {node.address}": OUR_COMMENT}
    assert pod.cloudflare.writes == []


# --- In-cluster access or kubeconfig ----------------------------------------------------------------------------


@pytest.fixture
def kubeconfig(pod: ClusterPod, authority: Authority) -> Path:
    """A kubeconfig with the pod's credentials. Its current context `laptop` is the cluster of the pod."""
    host, port = (pod.environment[f"KUBERNETES_SERVICE_{part}"] for part in ("HOST", "PORT"))
    path = pod.working_directory / "kubeconfig"
    cluster, user = {"certificate-authority": str(authority.certificate)}, {"token": pod.kubernetes.token}
    path.write_text(yaml.safe_dump(a_kubeconfig(f"https://{host}:{port}", cluster=cluster, user=user)))
    pod.environment["KUBECONFIG"] = str(path)
    return path


def test_redacted_report_does_not_name_the_context(pod: ClusterPod, kubeconfig: Path) -> None:
    """The name of a context can contain the name of a project or the number of an account."""
    pod.environment["DNS_OWNER"] = "services"
    result = pod.start_outside_cluster("status", "--redact").wait()
    assert "kubeconfig context la*, https://127.0.*" in result.stdout, result.stderr


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize("command", ["cleanup", "dns-watch", "prune --yes"])
def test_command_that_writes_does_not_use_a_kubeconfig(command: str, pod: ClusterPod, kubeconfig: Path) -> None:
    pod.add_leftovers()
    # `prune` requires DNS_OWNER.
    result = pod.start_outside_cluster(*command.split(), **SIDECAR_SETTINGS, DNS_OWNER="services").wait()
    assert (result.status, result.last_event["event"]) == (2, "settings.invalid")
    # The message names the commands that may use a kubeconfig.
    assert "--dry-run" in result.last_event["error"]
    assert pod.has_no_writes
    assert pod.kubernetes.requests == []


def test_libraries_use_no_proxy_for_kubernetes_in_the_cluster(pod: ClusterPod) -> None:
    """GET and exec requests bypass the proxy. NO_PROXY does not contain the API server's address on loopback."""
    pod.add_leftovers()
    proxy = ProxySimulator({})
    with proxy.serve() as url:
        result = pod.run("cleanup", HTTPS_PROXY=url, ALL_PROXY=url, NO_PROXY="localhost, 10.43.0.1")

    assert result.status == 0, result.stdout
    assert pod.headscale.nodes == []
    assert proxy.requested == []


@pytest.mark.full
@pytest.mark.parametrize("setting", ["HTTPS_PROXY", "proxy-url"])
def test_proxy_is_used_for_kubernetes_of_a_kubeconfig(pod: ClusterPod, kubeconfig: Path, setting: str) -> None:
    pod.add_leftovers()
    document = yaml.safe_load(kubeconfig.read_text())
    cluster = document["clusters"][0]["cluster"]
    proxy = ProxySimulator({"kubernetes.example.com:6443": cluster["server"].removeprefix("https://")})
    cluster |= {"server": "https://kubernetes.example.com:6443", "tls-server-name": "127.0.0.1"}
    with proxy.serve() as url:
        if setting == "proxy-url":
            cluster["proxy-url"] = url
        kubeconfig.write_text(yaml.safe_dump(document))
        result = pod.start_outside_cluster("--dry-run", **({} if setting == "proxy-url" else {setting: url})).wait()

    assert result.status == 0, result.stdout + result.stderr
    assert "node 1" in result.stdout
    assert set(proxy.requested) == {"kubernetes.example.com:6443"}


def test_kubeconfig_is_ignored_in_a_pod(pod: ClusterPod, kubeconfig: Path) -> None:
    kubeconfig.write_text("not a kubeconfig")
    result = pod.run("--dry-run")
    assert "in-cluster, https://127.0.0.1:" in result.stdout


def test_missing_url_is_a_settings_error_outside_a_cluster(pod: ClusterPod) -> None:
    result = pod.start_outside_cluster("--dry-run", HOME=str(pod.working_directory)).wait()
    assert result.status == 2
    assert "HEADSCALE_URL and HEADSCALE_API_KEY" in result.stderr


def test_dry_run_on_the_page_prints_the_plan_on_the_page(
    pod: ClusterPod, kubeconfig: Path, repository: Path, clean_environment: Mapping[str, str]
) -> None:
    """The commands in docs/dry-run.md run with a kubeconfig, a token, and the venv of this repository."""
    pod.headscale.add_user("services")
    node = pod.headscale.add_node(NAME, user="services", online=False)
    pod.cloudflare.add_record(pod.zone_id, type="A", name=NAME, content=node.address, ttl=300)
    page = (repository / "docs/dry-run.md").read_text()
    (commands,) = [block.text for block in blocks(page, "sh") if "--dry-run" in block.text]
    (documented,) = [block.text for block in blocks(page, "text")]
    # A clone that uses the venv of this repository.
    clone = pod.working_directory / "clone"
    (clone / "scripts").mkdir(parents=True)
    (clone / ".venv").symlink_to(repository / ".venv")
    bootstrap = clone / "scripts" / "bootstrap"
    bootstrap.write_text(f"#!/bin/sh\nexec {repository}/scripts/bootstrap\n")
    bootstrap.chmod(0o755)
    script = commands.replace("CLOUDFLARE_API_TOKEN=...", f"CLOUDFLARE_API_TOKEN={pod.cloudflare.token}")
    done = subprocess.run(
        ["sh", "-ec", script],
        cwd=clone,
        env={
            **clean_environment,
            "KUBECONFIG": str(kubeconfig),
            "CLOUDFLARE_API_URL": pod.environment["CLOUDFLARE_API_URL"],
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_TIMEOUT_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    port = pod.environment["KUBERNETES_SERVICE_PORT"]
    printed = done.stdout.replace(f"127.0.0.1:{port}", "kubernetes.example.com:6443")
    assert _facts(printed) == _facts(documented)
    assert pod.has_no_writes


def _facts(report: str) -> list[tuple[str, list[str]]]:
    """Return the first word of each line of a report, and the words of the line that look like names or addresses.

    Lines with reasons, which have a deeper indentation, are left out.
    """
    lines = [line.split() for line in report.splitlines() if line.strip() and not line.startswith("      ")]
    return [(first, [word.strip("(),") for word in words if re.search(r"[\d_/.]", word)]) for first, *words in lines]
