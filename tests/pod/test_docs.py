"""Test that the kustomizations and patches in docs/ can be rendered, and have the documented effect."""

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
    LIFECYCLE_CONTAINERS,
    SHIPPED_WORKLOADS,
    config_map_data,
    containers,
    copy_deploy,
    manifests_of,
    of_kind,
    pod_spec,
    render,
    render_changed,
)


def page_text(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def kustomizations(page: str) -> list[dict[str, Any]]:
    """Return the parsed YAML blocks of a page, which are kustomizations."""
    return [yaml.safe_load(block.text) for block in blocks(page_text(page), "yaml")]


def test_pages_name_only_existing_workloads() -> None:
    """Pages also name `_template`, and `wiki`, which a page shows how to create from it."""
    names = {name for page in PAGES for name in re.findall(r"deploy/services/([\w-]+)", page.read_text())}
    assert names <= {*SHIPPED_WORKLOADS, "_template", "wiki"}


def test_documented_settings_of_a_new_workload_exist_in_a_shipped_workload() -> None:
    documented, _ = kustomizations("add-a-service.md")
    names = {literal.partition("=")[0] for literal in documented["configMapGenerator"][0]["literals"]}
    assert names <= config_map_data(manifests_of("grafana"), "lifecycle").keys()


def test_documented_patch_for_exec_mounts_the_token_in_dns_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the access mode `exec`, the program uses the Kubernetes API to run Headscale's CLI in its pod."""
    kustomization = copy_deploy(tmp_path) / "deploy/services/grafana/kustomization.yaml"
    _, documented = kustomizations("add-a-service.md")
    generators = yaml.safe_load(kustomization.read_text())["configMapGenerator"]
    (lifecycle,) = [generator for generator in generators if generator["name"] == "lifecycle"]
    lifecycle["literals"] += documented["configMapGenerator"][0]["literals"]
    documents = render_changed(kustomization, documented | {"configMapGenerator": generators})
    init_containers = [container["name"] for container in pod_spec(documents)["initContainers"]]
    assert init_containers == ["cleanup", "tailscale", "dns-watch"]
    mounts = {mount["name"] for mount in containers(pod_spec(documents))["dns-watch"]["volumeMounts"]}
    assert "tailscale-lifecycle-token" in mounts
    for name, value in config_map_data(documents, "lifecycle").items():
        # The files exist only in a pod.
        monkeypatch.setenv(name, "" if name.endswith("_FILE") else value)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "made-up")
    monkeypatch.setenv("POD_NAME", "grafana-0")
    assert load(DryRunSettings).access == "exec"


def test_documented_registry_image_replaces_the_local_image(tmp_path: Path) -> None:
    kustomization = copy_deploy(tmp_path) / "deploy/services/grafana/kustomization.yaml"
    (documented,) = kustomizations("image.md")
    pod_containers = containers(pod_spec(render_changed(kustomization, documented)))
    (image,) = documented["images"]
    reference = f"{image['newName']}:{image['newTag']}"
    for name in LIFECYCLE_CONTAINERS:
        assert (pod_containers[name]["image"], pod_containers[name]["imagePullPolicy"]) == (reference, "IfNotPresent")
    # The page's command to push the image uses the same reference.
    assert f"docker://{reference}\n" in page_text("image.md")


def test_documented_patch_for_microk8s_mounts_the_folder_of_its_containerd_socket(tmp_path: Path) -> None:
    (documented,) = kustomizations("platforms.md")
    shutil.copytree(ROOT / "build", tmp_path / "build")
    (tmp_path / "build/sources.tar.gz").write_bytes(b"any content")
    (tmp_path / "microk8s").mkdir()
    (tmp_path / "microk8s/kustomization.yaml").write_text(yaml.safe_dump(documented))
    spec = pod_spec(render(tmp_path / "microk8s"))
    variables = {variable["name"]: variable.get("value") for variable in containers(spec)["import"]["env"]}
    socket = Path(variables["CONTAINERD_ADDRESS"])
    (mount,) = [
        mount for mount in containers(spec)["import"]["volumeMounts"] if mount["mountPath"] == str(socket.parent)
    ]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == mount["name"]]
    assert volume["hostPath"]["path"] == "/var/snap/microk8s/common/run"


def test_documented_patch_for_the_internal_controller_selects_cluster_nodes(tmp_path: Path) -> None:
    documented, _ = kustomizations("ingress.md")
    kustomization = copy_deploy(tmp_path) / "deploy/ingress/internal/kustomization.yaml"
    (daemon_set,) = of_kind(render_changed(kustomization, {"patches": documented["patches"]}), "DaemonSet")
    assert daemon_set["spec"]["template"]["spec"]["nodeSelector"] == {"nginx-ingress": "true"}


def test_documented_external_controller_without_vpn_has_no_vpn_containers(tmp_path: Path) -> None:
    _, documented = kustomizations("ingress.md")
    folder = copy_deploy(tmp_path) / "cluster/external"
    folder.mkdir(parents=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(documented))
    names = containers(pod_spec(render(folder))).keys()
    assert "nginx-ingress" in names
    assert names & {"cleanup", "tailscale", "dns-watch"} == set()


def test_documented_headscale_policy_allows_connections_to_but_not_from_controllers() -> None:
    (policy,) = [json.loads(block.text) for block in blocks(page_text("ingress.md"), "json")]
    (tag,) = policy["tagOwners"]
    (rule,) = policy["acls"]
    assert tag not in rule["src"]
    assert rule["dst"] == [f"{tag}:80,443"]
