"""The manual's first steps: Kubernetes takes its manifest, the commands take its settings, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lifecycle.settings import DryRunSettings, every_variable, load
from tests.test_docs import rows, section

ROOT = Path(__file__).parent.parent
COMPATIBILITY = (("README.md", "## Compatibility"), ("docs/compatibility.md", "## What is supported"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def block(kind: str, marker: str) -> str:
    """The one block of a kind in README.md in which something stands."""
    blocks = re.findall(rf"^```{kind}\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    [found] = [text for text in blocks if marker in text]
    return str(found)


@pytest.fixture
def pod() -> dict[str, Any]:
    manifest = yaml.safe_load(block("yaml", "kind: StatefulSet"))
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version().rpartition(".")[0], strict=True)
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {container["name"]: container for container in [*pod["initContainers"], *pod["containers"]]}


def test_every_mount_of_the_first_manifest_is_a_volume_of_the_pod(pod: dict[str, Any]) -> None:
    mounted = {mount["name"] for container in containers(pod).values() for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_our_containers_of_the_first_manifest_have_settings_of_ours(pod: dict[str, Any]) -> None:
    for name in ("cleanup", "dns-watch"):
        assert {variable["name"] for variable in containers(pod)[name]["env"]} <= every_variable()


def test_a_restart_of_the_first_manifests_tailscale_shows_no_key_that_is_used(pod: dict[str, Any]) -> None:
    """Its state lies on a volume, which outlives the container."""
    tailscale = containers(pod)["tailscale"]
    settings = {variable["name"]: variable["value"] for variable in tailscale["env"]}
    places = {mount["mountPath"]: mount["name"] for mount in tailscale["volumeMounts"]}
    assert settings["TS_STATE_DIR"] in places
    assert settings["TS_AUTH_ONCE"] == "true"
    key_file = settings["TS_AUTHKEY"].removeprefix("file:")
    volume = places[str(Path(key_file).parent)]
    assert volume in {mount["name"] for mount in containers(pod)["cleanup"]["volumeMounts"]}


def test_the_settings_of_the_first_dry_run_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    written = re.search(r"<<'END'\n(.*?)^END$", block("sh", "--dry-run"), flags=re.MULTILINE | re.DOTALL)
    assert written
    Path(".env").write_text(written[1].replace("=...", "=a-token"))
    settings = load(DryRunSettings)
    assert (settings.access, settings.mark) == ("exec", "tailscale-lifecycle/1 services")
    assert not settings.tailscale_interface


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_releases_of_the_manual_are_those_of_the_page_that_says_what_was_run() -> None:
    pages = (section((ROOT / name).read_text(), heading) for name, heading in COMPATIBILITY)
    here, there = ([re.sub(r" \(.*", "", row["Headscale"]) for row in rows(text)] for text in pages)
    assert here == there
    assert len(here) == 5
