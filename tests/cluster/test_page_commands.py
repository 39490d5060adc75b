"""Run every kubectl and scripts/new-service command in two pages (PAGES), and check its documented effect.

`test_every_command_has_a_check` fails for a command in the pages that has no check here. The commands run in a copy of
the repository, with `kubectl` and `headscale` of the cluster on PATH.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.cluster.api_server import RefusedError
from tests.cluster.cluster import START_TIMEOUT_S, Cluster
from tests.cluster.images import application
from tests.cluster.tailnet import Tailnet
from tests.cluster.test_folders import create_prerequisites
from tests.cluster.test_injection import pod_of
from tests.cluster.workloads import GRAFANA_NAME, GRAFANA_POD, WIKI_IMAGE
from tests.pages import ROOT, blocks, prose
from tests.pod.rendering import of_kind, render
from tests.real.programs import BackgroundProcess, eventually

PAGES: Final = ("operations.md", "add-a-service.md")

_COMMAND_STARTS: Final = ("kubectl ", "key=$(", "scripts/new-service ")


def commands(text: str) -> Iterator[str]:
    """Iterate over the commands in the code blocks and code spans of a page, without comments."""
    for block in blocks(text, "sh"):
        joined = re.sub(r" *\\\n *|(?<=&&)\n *", " ", block.text)
        for line in joined.splitlines():
            command = re.sub(r"\s+#.*", "", line).strip()
            if command.startswith(_COMMAND_STARTS):
                yield command
    for span in re.findall(r"`(kubectl [^`]+)`", prose(text)):
        # A short span, such as `kubectl describe`, is the name of a command.
        if len(span.split()) > 3:
            yield " ".join(span.split())


PAGE_COMMANDS: Final = [command for page in PAGES for command in commands((ROOT / "docs" / page).read_text())]


@dataclass(frozen=True)
class Shell:
    """A shell in a copy of the repository.

    Attributes:
        path: a folder with the programs `kubectl` and `headscale`.
    """

    tailnet: Tailnet
    path: Path

    def command(self, text: str) -> list[str]:
        """Return a command line that runs commands in the shell."""
        return ["env", f"PATH={self.path}{os.pathsep}{os.environ['PATH']}", "bash", "-euc", text]

    def run(self, text: str, *, status: int = 0) -> str:
        """Run commands, check the exit status, and return the standard output."""
        done = subprocess.run(
            self.command(text),
            cwd=self.tailnet.deploy_folder.parent,
            capture_output=True,
            text=True,
            check=False,
            timeout=START_TIMEOUT_S,
        )
        assert done.returncode == status, f"{text}\n{done.stdout}{done.stderr}"
        return done.stdout

    def start(self, text: str) -> BackgroundProcess:
        """Start a command that does not end by itself."""
        log = self.tailnet.cluster.folder / "shell.log"
        log.unlink(missing_ok=True)
        return BackgroundProcess(
            self.command(text), log=log, environment=os.environ, folder=self.tailnet.deploy_folder.parent
        )


@pytest.fixture(scope="module")
def shell(tailnet: Tailnet) -> Shell:
    """A shell for the cluster."""
    path = tailnet.cluster.folder / "bin"
    path.mkdir()
    kubectl = shlex.join(map(str, tailnet.cluster.server.kubectl_command()))
    headscale = f"{kubectl} -n headscale exec deploy/headscale -c headscale -- headscale"
    for name, command in {"kubectl": kubectl, "headscale": headscale}.items():
        (path / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (path / name).chmod(0o755)
    return Shell(tailnet, path)


CONTAINERS: Final = {"cleanup", "tailscale", "dns-watch", "nginx-tls", "application"}
"""The containers of the pod of Grafana."""


# --- docs/operations.md -------------------------------------------------------------------------------


def prints(*texts: str) -> Callable[[Shell, str], None]:
    """Return a check that a command succeeds and that its output contains these texts."""

    def check(shell: Shell, command: str) -> None:
        output = shell.run(command)
        assert [text for text in texts if text not in output] == []

    return check


def status_is_in_sync(shell: Shell, command: str) -> None:
    rows = [line for line in shell.run(command).splitlines() if GRAFANA_NAME in line]
    assert any("in sync" in row for row in rows)


def forwards_the_port(shell: Shell, command: str) -> None:
    cluster = shell.tailnet.cluster
    with shell.start(command) as process:
        for path in ("readyz", "nodez"):
            url = f"http://127.0.0.1:9003/{path}"
            eventually(partial(_responds, cluster, url), url, details=process.output)


def _responds(cluster: Cluster, url: str) -> bool:
    return cluster.host.request(url).status == 200


def registers_as_a_new_node(shell: Shell, commands: str) -> None:
    tailnet = shell.tailnet
    before, pod = tailnet.wait_for_published_node(GRAFANA_NAME), tailnet.cluster.get("pod", GRAFANA_POD)
    shell.run(commands)
    tailnet.cluster.wait_for_pod(GRAFANA_POD, not_uid=pod["metadata"]["uid"])
    after = tailnet.wait_for_published_node(GRAFANA_NAME)
    assert after["id"] != before["id"]
    assert after["ip_addresses"] != before["ip_addresses"]


def shows_the_addresses(shell: Shell, command: str) -> None:
    assert shell.run(command).split() == shell.tailnet.wait_for_published_node(GRAFANA_NAME)["ip_addresses"]


def shows_states(shell: Shell, command: str) -> None:
    states = dict(line.split(maxsplit=1) for line in shell.run(command).splitlines() if line)
    assert states.keys() == CONTAINERS
    assert "terminated" in states.pop("cleanup")
    assert all("running" in state for state in states.values())


def resolves_cloudflare(shell: Shell, command: str) -> None:
    shell.tailnet.cluster.names["api.cloudflare.com"] = "192.0.2.1"
    assert "192.0.2.1" in shell.run(command)


def replaces_the_api_key(shell: Shell, commands: str) -> None:
    """The running pod uses the new key when Headscale refuses the old one."""
    tailnet = shell.tailnet
    old = [str(key["id"]) for key in tailnet.run_headscale("apikeys", "list")]
    shell.run(commands)
    for key in old:
        tailnet.run_headscale("apikeys", "expire", "--id", key)
    eventually(
        lambda: _is_in_sync(shell),
        "a pod with the new key",
        details=lambda: tailnet.cluster.logs(GRAFANA_POD, "dns-watch"),
        timeout_s=START_TIMEOUT_S,
    )


def _is_in_sync(shell: Shell) -> bool:
    try:
        text = shell.tailnet.cluster.exec(GRAFANA_POD, "dns-watch", "lifecycle", "status")
    except RefusedError:
        return False
    return any("in sync" in line for line in text.splitlines() if GRAFANA_NAME in line)


def leaves_node_record_and_volume(shell: Shell, command: str) -> None:
    tailnet = shell.tailnet
    node = tailnet.wait_for_published_node(GRAFANA_NAME)
    shell.run(command)
    eventually(lambda: not tailnet.cluster.pods("app.kubernetes.io/name=grafana"), "no pod", timeout_s=START_TIMEOUT_S)
    assert tailnet.wait_for_published_node(GRAFANA_NAME)["id"] == node["id"]
    tailnet.cluster.get("persistentvolumeclaim", "data-grafana-0")


def deletes_the_volume(shell: Shell, command: str) -> None:
    """After the check, apply the workload again for later checks."""
    shell.run(command)
    with pytest.raises(RefusedError, match="not found"):
        shell.tailnet.cluster.get("persistentvolumeclaim", "data-grafana-0")
    shell.run("kubectl apply -k deploy/services/grafana")
    shell.tailnet.cluster.wait_for_pod(GRAFANA_POD)
    shell.tailnet.wait_for_published_node(GRAFANA_NAME)


# --- docs/add-a-service.md ----------------------------------------------------------------------------

OTHER_NAMESPACE: Final = "other-services"
"""The namespace that replaces `services` in commands of the page, because `services` already exists."""


def creates_a_namespace(shell: Shell, command: str) -> None:
    shell.run(command.replace("services", OTHER_NAMESPACE))


def admits_the_pod(shell: Shell, command: str) -> None:
    """With the label, the namespace admits a pod with NET_ADMIN. With the level `baseline`, the pod is refused."""
    cluster = shell.tailnet.cluster
    shell.run(command.replace("services", OTHER_NAMESPACE))
    (workload,) = of_kind(render(shell.tailnet.deploy_folder / "services/grafana"), "StatefulSet")
    cluster.kubectl("-n", OTHER_NAMESPACE, "create", "serviceaccount", "grafana")
    pod = pod_of(workload)
    pod["metadata"] |= {"namespace": OTHER_NAMESPACE}
    cluster.server.create_dry_run(pod)
    baseline = "pod-security.kubernetes.io/enforce=baseline"
    cluster.kubectl("label", "--overwrite", "namespace", OTHER_NAMESPACE, baseline)
    with pytest.raises(RefusedError, match="NET_ADMIN"):
        cluster.server.create_dry_run(pod)


def creates_the_secret(shell: Shell, command: str) -> None:
    shell.run(command.replace("-n services", f"-n {OTHER_NAMESPACE}"))
    keys = shell.tailnet.cluster.get("secret", "lifecycle", OTHER_NAMESPACE)["data"]
    assert keys.keys() == {"HEADSCALE_API_KEY", "CLOUDFLARE_API_TOKEN"}


def applies_a_folder(shell: Shell, command: str) -> None:
    for document in render(shell.tailnet.deploy_folder.parent / command.rsplit(maxsplit=1)[-1]):
        create_prerequisites(shell.tailnet.cluster.server, document)
    shell.run(command)


def creates_manifests(shell: Shell, command: str) -> None:
    shell.run(command)
    assert (shell.tailnet.deploy_folder / "services/wiki/kustomization.yaml").exists()


def prints_the_manifests(shell: Shell, command: str) -> None:
    assert {"StatefulSet", "Service"} <= {document["kind"] for document in yaml.safe_load_all(shell.run(command))}


def starts_the_workload(shell: Shell, command: str) -> None:
    cluster = shell.tailnet.cluster
    cluster.load({WIKI_IMAGE: application(cluster.layers, 3000)})
    shell.run(command)
    cluster.wait_for_pod("wiki-0")
    shell.tailnet.wait_for_published_node("wiki.example.com")


def shows_progress(shell: Shell, command: str) -> None:
    try:
        with shell.start(command) as process:
            eventually(lambda: "Running" in process.output(), "the pod's line", details=process.output)
    finally:
        # Other tests use the name wiki.example.com.
        shell.run("kubectl delete -k deploy/services/wiki")
        (node,) = shell.tailnet.nodes("wiki.example.com")
        shell.tailnet.run_headscale("nodes", "delete", "--identifier", str(node["id"]), "--force")


_SERVICES: Final = "kubectl -n services"

CHECKS: Final[dict[str, Callable[[Shell, str], None]]] = {
    f"{_SERVICES} exec grafana-0 -c dns-watch -- lifecycle status": status_is_in_sync,
    f"{_SERVICES} describe pod grafana-0": prints(*(f"  {name}:\n" for name in CONTAINERS), "Exit Code:"),
    f"{_SERVICES} logs grafana-0 -c cleanup": prints("key_file.written"),
    f"{_SERVICES} logs grafana-0 -c dns-watch": prints("node.registered"),
    f"{_SERVICES} logs grafana-0 -c tailscale": prints("Startup complete"),
    f"{_SERVICES} port-forward grafana-0 9003": forwards_the_port,
    f"{_SERVICES} exec grafana-0 -c tailscale -- tailscale status": prints(GRAFANA_NAME.replace(".", "-")),
    f"{_SERVICES} exec grafana-0 -c tailscale -- tailscale ip": shows_the_addresses,
    f"""{_SERVICES} get pod grafana-0 -o jsonpath="{{range .status['initContainerStatuses','containerStatuses'][*]}}"""
    """{.name} {.state}{'\\n'}{end}\"""": shows_states,
    f"{_SERVICES} exec grafana-0 -c nginx-tls -- netstat -tln": prints(
        *(f":{port} " for port in (80, 443, 3000, 9003, 9004))
    ),
    f"{_SERVICES} exec grafana-0 -c nginx-tls -- nginx -t": prints(),
    f"{_SERVICES} exec grafana-0 -c nginx-tls -- nginx -T": prints("from_vpn"),
    f"{_SERVICES} exec grafana-0 -c nginx-tls -- wget -S -O - http://127.0.0.1:9004/application": prints(),
    f"{_SERVICES} exec grafana-0 -c tailscale -- nslookup api.cloudflare.com": resolves_cloudflare,
    f"""{_SERVICES} patch secret grafana-tailscale --type=json -p '[{{"op": "remove", "path": "/data"}}]'""": prints(),
    f"{_SERVICES} delete pod grafana-0": registers_as_a_new_node,
    "key=$(kubectl -n headscale exec deployment/headscale -- headscale apikeys create --expiration 365d "
    "| grep -v '[ {]') && "
    f'{_SERVICES} patch secret lifecycle --patch "{{\\"stringData\\": '
    '{\\"HEADSCALE_API_KEY\\": \\"$key\\"}}"': replaces_the_api_key,
    "kubectl delete -k deploy/services/grafana": leaves_node_record_and_volume,
    f"{_SERVICES} delete pvc data-grafana-0": deletes_the_volume,
    "kubectl create namespace services": creates_a_namespace,
    "kubectl label namespace services pod-security.kubernetes.io/enforce=privileged "
    "pod-security.kubernetes.io/warn=restricted": admits_the_pod,
    "key=$(headscale apikeys create --expiration 365d | grep -v '[ {]') && "
    f"{_SERVICES} create secret generic lifecycle "
    '--from-literal=HEADSCALE_API_KEY="$key" --from-literal=CLOUDFLARE_API_TOKEN=...': creates_the_secret,
    "scripts/new-service wiki docker.io/a/wiki:1.2 3000 /wiki/data": creates_manifests,
    "kubectl kustomize deploy/services/wiki": prints_the_manifests,
    "kubectl apply -k deploy/services/wiki": starts_the_workload,
    f"{_SERVICES} get pod wiki-0 --watch": shows_progress,
    "kubectl apply -k deploy/cert-manager": applies_a_folder,
    f"{_SERVICES} describe certificate wildcard": prints("wildcard"),
}
"""The check of each command. The checks run in this order."""


def test_every_command_has_a_check() -> None:
    assert sorted({*PAGE_COMMANDS}) == sorted(CHECKS)


@pytest.mark.parametrize("command", CHECKS)
def test_command_does_what_the_page_says(shell: Shell, grafana: str, client_pods: None, command: str) -> None:
    CHECKS[command](shell, command)
