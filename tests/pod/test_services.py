"""Test what is special in the manifests and documented snippets for Argo CD, Open WebUI and FreeIPA."""

from __future__ import annotations

import json
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.pages import blocks
from tests.pod.rendering import (
    DEPLOY,
    Document,
    argocd_kustomization_in_clone,
    config_map_data,
    containers,
    manifests_of,
    of_kind,
    parse,
    pod_spec,
    render,
    write_kustomization,
)

# --- Argo CD ------------------------------------------------------------------------------------------


def argocd_manifests() -> list[Document]:
    """Return the manifests of Argo CD's server, from those that Argo CD publishes."""
    return parse(Path(__file__).with_name("argocd.yaml").read_text())


def test_container_of_argo_cd_keeps_its_image_and_arguments() -> None:
    (before,) = pod_spec(argocd_manifests())["containers"]
    after = containers(pod_spec(manifests_of("argocd")))["argocd-server"]
    for key in ("args", "env", "image", "securityContext"):
        assert after[key] == before[key]
    assert [mount for mount in before["volumeMounts"] if mount not in after["volumeMounts"]] == []


def test_argo_cd_listens_on_localhost_for_nginx() -> None:
    """The variables of the container come from this ConfigMap."""
    assert config_map_data(manifests_of("argocd"), "argocd-cmd-params-cm") == {
        "server.insecure": "true",
        "server.listen.address": "127.0.0.1",
        "server.metrics.listen.address": "127.0.0.1",
    }
    assert config_map_data(manifests_of("argocd"), "nginx")["application.conf"] == "proxy_pass http://127.0.0.1:8080;"


def test_other_workloads_of_argo_cd_get_no_containers(tmp_path: Path) -> None:
    published = argocd_manifests()
    (deployment,) = of_kind(published, "Deployment")
    others = [deployment | {"metadata": {"name": "argocd-repo-server"}}]
    others += [deployment | {"kind": "StatefulSet", "metadata": {"name": "argocd-application-controller"}}]
    folder = write_kustomization(tmp_path / "argocd", argocd_kustomization_in_clone())
    (folder / "install.yaml").write_text(yaml.safe_dump_all([*published, *others]))
    after = {
        document["metadata"]["name"]: document for document in of_kind(render(folder), "Deployment", "StatefulSet")
    }
    assert set(containers(after["argocd-server"]["spec"]["template"]["spec"])) == {
        "cleanup",
        "tailscale",
        "dns-watch",
        "nginx-tls",
        "argocd-server",
    }
    for other in others:
        assert after[other["metadata"]["name"]]["spec"] == other["spec"]


def test_build_fails_without_the_deployment_of_argo_cd(tmp_path: Path) -> None:
    folder = write_kustomization(tmp_path / "argocd", argocd_kustomization_in_clone())
    documents = [document for document in argocd_manifests() if document["kind"] != "Deployment"]
    (folder / "install.yaml").write_text(yaml.safe_dump_all(documents))
    with pytest.raises(AssertionError, match=r"no matches for Id Deployment\S+argocd-server"):
        render(folder)


# --- Open WebUI ---------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """Return the data folder of the image, with models in a cache of Hugging Face's library, and an empty volume."""
    image, volume = tmp_path / "image", tmp_path / "volume"
    (image / "cache/blobs").mkdir(parents=True)
    (image / "cache/snapshots").mkdir()
    (image / "cache/blobs/1").write_text("weights")
    (image / "cache/snapshots/model.bin").symlink_to("../blobs/1")
    volume.mkdir()
    return image, volume


def copy_models(image: Path, volume: Path) -> None:
    """Run the command of the init container `copy-models`, with other paths."""
    *command, source, target = containers(pod_spec(manifests_of("open-webui")))["copy-models"]["command"]
    assert (source, target) == ("/app/backend/data", "/data")
    subprocess.run([*command, image, volume], check=True)


def test_models_in_the_image_are_copied_to_the_volume(models: tuple[Path, Path]) -> None:
    image, volume = models
    copy_models(image, volume)
    assert (volume / "cache/snapshots/model.bin").read_text() == "weights"
    assert (volume / "cache/snapshots/model.bin").is_symlink()


def test_existing_files_of_the_volume_are_kept(models: tuple[Path, Path]) -> None:
    image, volume = models
    (volume / "cache/blobs").mkdir(parents=True)
    (volume / "cache/blobs/1").write_text("newer")
    (volume / "webui.db").write_text("chats")
    copy_models(image, volume)
    assert (volume / "cache/snapshots/model.bin").read_text() == "newer"
    assert (volume / "webui.db").read_text() == "chats"


def test_interrupted_copy_of_the_models_is_repeated(models: tuple[Path, Path]) -> None:
    """The command first copies a file to `.copying`. An interrupted copy leaves this file behind."""
    image, volume = models
    (volume / ".copying").write_text("wei")
    copy_models(image, volume)
    assert sorted(str(path.relative_to(volume)) for path in volume.rglob("*") if not path.is_dir()) == [
        "cache/blobs/1",
        "cache/snapshots/model.bin",
    ]
    assert (volume / "cache/blobs/1").read_text() == "weights"


# --- FreeIPA ------------------------------------------------------------------------------------------


def test_container_of_freeipa_has_the_hostname_on_the_vpn() -> None:
    """At the first start, FreeIPA's image installs the server under the container's hostname."""
    documents = manifests_of("freeipa")
    assert pod_spec(documents)["hostnameOverride"] == config_map_data(documents, "lifecycle")["TS_HOSTNAME"]


def test_documented_snippets_for_freeipa_are_valid() -> None:
    page = (DEPLOY / "services/freeipa/README.md").read_text()
    (toml,) = blocks(page, "toml")
    plugin = tomllib.loads(toml.text)["plugins"]["io.containerd.cri.v1.runtime"]
    assert plugin["containerd"]["runtimes"]["runc"]["cgroup_writable"] is True
    # An option of the device plugin. Its value is JSON.
    (device,) = blocks(page, "text")
    name = json.loads(shlex.split(device.text)[1])["name"]
    limits = containers(pod_spec(manifests_of("freeipa")))["tailscale"]["resources"]["limits"]
    assert limits[f"squat.ai/{name}"] == "1"
