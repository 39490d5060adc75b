"""Test that the program accepts the manifest and the Secret of README, and the `.env` files of other pages."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lifecycle.inject.manifests import inject
from lifecycle.settings.load import load, settings_to_pass_on
from lifecycle.settings.models import (
    CleanupSettings,
    DnsWatchSettings,
    DryRunSettings,
    InjectSettings,
    PruneSettings,
    every_variable,
)
from tests.pages import ROOT, blocks

README = (ROOT / "README.md").read_text()


@pytest.fixture
def manifest() -> dict[str, Any]:
    """Return README's Deployment with the containers that the policies add, configured by deploy/site/site.env."""
    (deployment,) = [
        document
        for block in blocks(README, "yaml")
        for document in yaml.safe_load_all(block.text)
        if document["kind"] == "Deployment"
    ]
    Path(".env").write_text((ROOT / "deploy/site/site.env").read_text())
    settings = load(InjectSettings)
    injected = json.loads(inject([json.dumps(deployment)], settings, settings_to_pass_on(settings)))
    Path(".env").unlink()
    for document in (deployment, injected):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version().rpartition(".")[0], strict=True)
    return dict(injected)


@pytest.fixture
def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the pod spec of README's Deployment."""
    return dict(manifest["spec"]["template"]["spec"])


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {container["name"]: container for container in [*pod["initContainers"], *pod["containers"]]}


def variables(container: dict[str, Any]) -> dict[str, str]:
    """Return the variables of a container that have a literal value."""
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


def secret_keys() -> dict[str, set[str]]:
    """Return the keys of each Secret that README's commands create."""
    keys: dict[str, set[str]] = {}
    for block in blocks(README, "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if "create secret generic" in line:
                words = shlex.split(line)
                literals = (
                    word.removeprefix("--from-literal=") for word in words if word.startswith("--from-literal=")
                )
                keys[words[words.index("generic") + 1]] = {literal.partition("=")[0] for literal in literals}
    return keys


def test_every_mounted_volume_exists_in_the_pod(pod: dict[str, Any]) -> None:
    mounted = {mount["name"] for container in containers(pod).values() for mount in container.get("volumeMounts", ())}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def secret_keys_by_setting(pod: dict[str, Any], container: str) -> dict[str, str]:
    """Return the key of the Secret that each `_FILE` setting of a container refers to."""
    mounts = {mount["name"]: mount["mountPath"] for mount in containers(pod)[container]["volumeMounts"]}
    (folder,) = [
        Path(mounts[volume["name"]])
        for volume in pod["volumes"]
        if volume.get("secret", {}).get("secretName") in secret_keys()
    ]
    files = {
        name: Path(value) for name, value in variables(containers(pod)[container]).items() if name.endswith("_FILE")
    }
    assert {file.parent for file in files.values()} == {folder}
    return {name: file.name for name, file in files.items()}


@pytest.mark.parametrize("container", ["cleanup", "dns-watch"])
def test_containers_read_the_keys_of_the_secret_that_readme_creates(pod: dict[str, Any], container: str) -> None:
    assert set(secret_keys_by_setting(pod, container).values()) == secret_keys()["lifecycle"]


@pytest.mark.parametrize(("container", "command"), [("cleanup", CleanupSettings), ("dns-watch", DnsWatchSettings)])
def test_settings_of_the_containers_are_valid(
    manifest: dict[str, Any],
    pod: dict[str, Any],
    container: str,
    command: type[CleanupSettings | DnsWatchSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = variables(containers(pod)[container])
    # The files exist only in the pod.
    for name, key in secret_keys_by_setting(pod, container).items():
        del environment[name]
        environment[key] = "a-token"
    assert environment.keys() <= every_variable()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("POD_NAME", f"{manifest['metadata']['name']}-5d4c-x7k2p")
    settings = load(command)
    assert settings.access == "api"
    assert settings.node_hostname == variables(containers(pod)["tailscale"])["TS_HOSTNAME"]


def test_tailscale_container_keeps_its_state_and_reads_the_key_of_cleanup(pod: dict[str, Any]) -> None:
    """Because of its state, tailscale does not send the used key again after a restart of the container."""
    tailscale = containers(pod)["tailscale"]
    settings = variables(tailscale)
    volumes = {mount["mountPath"]: mount["name"] for mount in tailscale["volumeMounts"]}
    assert settings["TS_STATE_DIR"] in volumes
    assert settings["TS_AUTH_ONCE"] == "true"
    key_volume = volumes[str(Path(settings["TS_AUTHKEY"].removeprefix("file:")).parent)]
    assert key_volume in {mount["name"] for mount in containers(pod)["cleanup"]["volumeMounts"]}


def test_login_servers_in_code_blocks_are_reachable_after_a_restart_of_headscale() -> None:
    """After the restart, clients whose login server is an `http` URL with a host name stay offline."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    texts = [block.text for page in pages for block in blocks(page.read_text())]
    texts.append((ROOT / "deploy/site/site.env").read_text())
    servers = {server for text in texts for server in re.findall(r"(?:--login-server|LOGIN_SERVER)=([^\s\"]+)", text)}
    assert servers
    assert [server for server in servers if not re.match(r"https://|http://\d+(\.\d+){3}\b", server)] == []


def env_file(page: str) -> str:
    """Return the `.env` file that a page's commands write for a dry run, with a token instead of each `...`."""
    (content,) = [
        text
        for block in blocks((ROOT / page).read_text(), "sh")
        for text in re.findall(r"^cat >\.env <<'END'\n(.*?)^END$", block.text, flags=re.MULTILINE | re.DOTALL)
    ]
    return str(content).replace("=...", "=a-token")


@pytest.mark.parametrize(("page", "access"), [("docs/dry-run.md", "exec"), ("docs/move-from-terraform.md", "api")])
def test_env_file_of_a_page_is_valid_for_a_dry_run_and_for_prune(page: str, access: str) -> None:
    Path(".env").write_text(env_file(page))
    settings = load(DryRunSettings)
    assert (settings.access, settings.mark) == (access, "tailscale-lifecycle/1 services")
    # Otherwise, the dry run would use the VPN address of the reader's machine.
    assert not settings.tailscale_interface
    assert load(PruneSettings).dns_owner == "services"
