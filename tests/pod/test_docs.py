"""The operator's pages: what they show of deploy/ renders, and works as they show it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from lifecycle.settings.load import load
from lifecycle.settings.models import DryRunSettings
from tests.pages import PAGES, ROOT, blocks
from tests.pod.rendering import (
    SHIPPED,
    configuration,
    containers,
    copied,
    of_kind,
    pod_spec,
    render,
    rendered,
)


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def kustomizations(page: str) -> list[dict[str, Any]]:
    """The YAML documents that a page shows."""
    return [yaml.safe_load(block.text) for block in blocks(text(page), "yaml")]


def test_every_workload_that_a_page_names_is_shipped_or_made() -> None:
    named = {found for page in PAGES for found in re.findall(r"deploy/services/([\w-]+)", page.read_text())}
    assert named <= {*SHIPPED, "_template", "wiki"}


def test_a_workload_of_your_own_needs_no_setting_that_the_base_lacks() -> None:
    own, _ = kustomizations("add-a-service.md")
    named = {literal.partition("=")[0] for literal in own["configMapGenerator"][0]["literals"]}
    assert named <= configuration(rendered("grafana"), "lifecycle").keys()


def test_the_pages_patch_for_exec_gives_dns_watch_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kustomization = copied(tmp_path) / "deploy/services/grafana/kustomization.yaml"
    _, wanted = kustomizations("add-a-service.md")
    ours = yaml.safe_load(kustomization.read_text())
    (lifecycle,) = [each for each in ours["configMapGenerator"] if each["name"] == "lifecycle"]
    lifecycle["literals"] += wanted["configMapGenerator"][0]["literals"]
    ours["patches"] += wanted["patches"]
    kustomization.write_text(yaml.safe_dump(ours))
    documents = render(kustomization.parent)
    starts = [container["name"] for container in pod_spec(documents)["initContainers"]]
    assert starts == ["cleanup", "tailscale", "dns-watch"]
    mounts = {mount["name"] for mount in containers(pod_spec(documents))["dns-watch"]["volumeMounts"]}
    assert "tailscale-lifecycle-token" in mounts
    for name, value in configuration(documents, "lifecycle").items():
        monkeypatch.setenv(name, "" if name.endswith("_FILE") else value)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "made-up")
    monkeypatch.setenv("POD_NAME", "grafana-0")
    assert load(DryRunSettings).access == "exec"


def test_every_container_of_ours_takes_the_registrys_image(tmp_path: Path) -> None:
    kustomization = copied(tmp_path) / "deploy/services/grafana/kustomization.yaml"
    (wanted,) = kustomizations("image.md")
    kustomization.write_text(yaml.safe_dump(yaml.safe_load(kustomization.read_text()) | wanted))
    ours = [containers(pod_spec(render(kustomization.parent)))[name] for name in ("cleanup", "dns-watch")]
    (image,) = wanted["images"]
    assert {container["image"] for container in ours} == {f"{image['newName']}:{image['newTag']}"}
    assert {container["imagePullPolicy"] for container in ours} == {"IfNotPresent"}
    assert f"docker://{image['newName']}:{image['newTag']}\n" in text("image.md")


def test_patch_for_microk8s_mounts_the_folder_of_its_socket(tmp_path: Path) -> None:
    (wanted,) = kustomizations("platforms.md")
    shutil.copytree(ROOT / "build", tmp_path / "build")
    (tmp_path / "build/sources.tar.gz").write_bytes(b"packed")
    (tmp_path / "microk8s").mkdir()
    (tmp_path / "microk8s/kustomization.yaml").write_text(yaml.safe_dump(wanted))
    spec = pod_spec(render(tmp_path / "microk8s"))
    variables = {variable["name"]: variable.get("value") for variable in containers(spec)["import"]["env"]}
    socket = Path(variables["CONTAINERD_ADDRESS"])
    (mount,) = [
        mount for mount in containers(spec)["import"]["volumeMounts"] if mount["mountPath"] == str(socket.parent)
    ]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == mount["name"]]
    assert volume["hostPath"]["path"] == "/var/snap/microk8s/common/run"


def test_patch_for_the_ingress_selects_cluster_nodes(tmp_path: Path) -> None:
    wanted, _ = kustomizations("ingress.md")
    kustomization = copied(tmp_path) / "deploy/ingress/internal/kustomization.yaml"
    ours = yaml.safe_load(kustomization.read_text())
    kustomization.write_text(yaml.safe_dump(ours | {"patches": ours.get("patches", []) + wanted["patches"]}))
    (daemon_set,) = of_kind(render(kustomization.parent), "DaemonSet")
    assert daemon_set["spec"]["template"]["spec"]["nodeSelector"] == {"nginx-ingress": "true"}


def test_external_controller_can_do_without_the_vpn(tmp_path: Path) -> None:
    _, wanted = kustomizations("ingress.md")
    folder = copied(tmp_path) / "cluster/external"
    folder.mkdir(parents=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(wanted))
    names = containers(pod_spec(render(folder))).keys()
    assert "nginx-ingress" in names
    assert names & {"cleanup", "tailscale", "dns-watch"} == set()


def test_policy_for_the_ingress_gives_its_nodes_no_access() -> None:
    (policy,) = [json.loads(block.text) for block in blocks(text("ingress.md"), "json")]
    (tag,) = policy["tagOwners"]
    (rule,) = policy["acls"]
    assert tag not in rule["src"]
    assert rule["dst"] == [f"{tag}:80,443"]
