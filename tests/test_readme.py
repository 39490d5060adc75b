"""README: its first manifest is valid, its settings load, its Secret has the keys that the manifest reads."""

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
from lifecycle.inject.run import site_from_settings
from lifecycle.settings.load import load
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
    """The first manifest, as it is created when the containers have been added with the shipped settings."""
    (found,) = [
        document
        for block in blocks(README, "yaml")
        for document in yaml.safe_load_all(block.text)
        if document["kind"] == "Deployment"
    ]
    Path(".env").write_text((ROOT / "deploy/site/site.env").read_text())
    created = json.loads(inject(json.dumps(found), site_from_settings(load(InjectSettings))))
    Path(".env").unlink()
    for document in (found, created):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version().rpartition(".")[0], strict=True)
    return dict(created)


@pytest.fixture
def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return dict(manifest["spec"]["template"]["spec"])


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {container["name"]: container for container in [*pod["initContainers"], *pod["containers"]]}


def variables(container: dict[str, Any]) -> dict[str, str]:
    """The container's literal variables."""
    return {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}


def secret_keys() -> dict[str, set[str]]:
    """Each Secret that README creates, with its keys."""
    made: dict[str, set[str]] = {}
    for block in blocks(README, "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if "create secret generic" in line:
                words = shlex.split(line)
                literals = (
                    word.removeprefix("--from-literal=") for word in words if word.startswith("--from-literal=")
                )
                made[words[words.index("generic") + 1]] = {literal.partition("=")[0] for literal in literals}
    return made


def test_every_mount_of_the_first_manifest_is_a_volume_of_the_pod(pod: dict[str, Any]) -> None:
    mounted = {mount["name"] for container in containers(pod).values() for mount in container.get("volumeMounts", ())}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def secret_files(pod: dict[str, Any], container: str) -> dict[str, str]:
    """The settings that name a file of a mounted Secret: variable, key."""
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
def test_the_first_manifest_reads_only_secrets_that_readme_creates(pod: dict[str, Any], container: str) -> None:
    assert set(secret_files(pod, container).values()) == secret_keys()["lifecycle"]


@pytest.mark.parametrize(("container", "command"), [("cleanup", CleanupSettings), ("dns-watch", DnsWatchSettings)])
def test_the_settings_of_the_first_manifest_load(
    manifest: dict[str, Any],
    pod: dict[str, Any],
    container: str,
    command: type[CleanupSettings | DnsWatchSettings],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours = containers(pod)[container]
    given = variables(ours)
    for name, key in secret_files(pod, container).items():
        del given[name]
        given[key] = "a-token"
    assert given.keys() <= every_variable()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("POD_NAME", f"{manifest['metadata']['name']}-5d4c-x7k2p")
    settings = load(command)
    assert settings.access == "api"
    assert settings.node_hostname == variables(containers(pod)["tailscale"])["TS_HOSTNAME"]


def test_the_tailscale_container_keeps_its_state_over_a_restart(pod: dict[str, Any]) -> None:
    """A used key is not presented again, and the key file is the one that cleanup writes."""
    tailscale = containers(pod)["tailscale"]
    settings = variables(tailscale)
    places = {mount["mountPath"]: mount["name"] for mount in tailscale["volumeMounts"]}
    assert settings["TS_STATE_DIR"] in places
    assert settings["TS_AUTH_ONCE"] == "true"
    volume = places[str(Path(settings["TS_AUTHKEY"].removeprefix("file:")).parent)]
    assert volume in {mount["name"] for mount in containers(pod)["cleanup"]["volumeMounts"]}


def test_no_page_ships_a_login_server_that_strands_clients() -> None:
    """`http` with a name and a port is shown as a warning only, outside code that readers copy."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    copied = [block.text for page in pages for block in blocks(page.read_text())]
    copied.append((ROOT / "deploy/site/site.env").read_text())
    servers = {server for text in copied for server in re.findall(r"(?:--login-server|LOGIN_SERVER)=([^\s\"]+)", text)}
    assert servers
    assert [server for server in servers if not re.match(r"https://|http://\d+(\.\d+){3}\b", server)] == []


def env_file(page: str) -> str:
    """The `.env` file that a page's dry run writes, with a token for each `...`."""
    (found,) = [
        text
        for block in blocks((ROOT / page).read_text(), "sh")
        for text in re.findall(r"^cat >\.env <<'END'\n(.*?)^END$", block.text, flags=re.MULTILINE | re.DOTALL)
    ]
    return str(found).replace("=...", "=a-token")


@pytest.mark.parametrize(("page", "access"), [("docs/dry-run.md", "exec"), ("docs/move-from-terraform.md", "api")])
def test_the_settings_of_a_pages_dry_run_load(page: str, access: str) -> None:
    Path(".env").write_text(env_file(page))
    settings = load(DryRunSettings)
    assert (settings.access, settings.mark) == (access, "tailscale-lifecycle/1 services")
    assert not settings.tailscale_interface


def test_the_settings_of_a_dry_run_work_for_prune() -> None:
    Path(".env").write_text(env_file("docs/move-from-terraform.md"))
    assert load(PruneSettings).dns_owner == "services"
