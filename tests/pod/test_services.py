"""What is special about single workloads of deploy/services, and their README.md."""

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
    argocd,
    configuration,
    containers,
    of_kind,
    pod_spec,
    render,
    rendered,
    write,
)

# --- Argo CD ------------------------------------------------------------------------------------------


def upstream() -> list[Document]:
    """Return the stand-in for the manifests of Argo CD."""
    return list(yaml.safe_load_all(Path(__file__).with_name("argocd.yaml").read_text()))


def test_arguments_and_variables_of_argo_cd_stay_as_they_are() -> None:
    (before,) = pod_spec(upstream())["containers"]
    after = containers(pod_spec(rendered("argocd")))["argocd-server"]
    assert {key: after[key] for key in ("args", "env", "image", "securityContext")} == {
        key: before[key] for key in ("args", "env", "image", "securityContext")
    }
    assert [mount for mount in before["volumeMounts"] if mount not in after["volumeMounts"]] == []


def test_argo_cd_listens_on_localhost_for_nginx() -> None:
    """The variables of the container refer to these keys."""
    (data,) = [
        document["data"]
        for document in of_kind(rendered("argocd"), "ConfigMap")
        if document["metadata"]["name"] == "argocd-cmd-params-cm"
    ]
    assert data == {
        "server.insecure": "true",
        "server.listen.address": "127.0.0.1",
        "server.metrics.listen.address": "127.0.0.1",
    }
    assert configuration(rendered("argocd"), "nginx")["application.conf"] == "proxy_pass http://127.0.0.1:8080;"


def test_other_workloads_of_argo_cd_get_no_containers(tmp_path: Path) -> None:
    server = upstream()
    (deployment,) = of_kind(server, "Deployment")
    others = [deployment | {"metadata": {"name": "argocd-repo-server"}}]
    others += [deployment | {"kind": "StatefulSet", "metadata": {"name": "argocd-application-controller"}}]
    folder = write(tmp_path / "argocd", argocd().replace("  - ../site\n", ""))
    (folder / "install.yaml").write_text(yaml.safe_dump_all([*server, *others]))
    after = {
        document["metadata"]["name"]: document for document in of_kind(render(folder), "Deployment", "StatefulSet")
    }
    assert len(containers(after["argocd-server"]["spec"]["template"]["spec"])) == 5
    for other in others:
        assert after[other["metadata"]["name"]]["spec"] == other["spec"]


def test_build_fails_without_the_deployment_of_argo_cd(tmp_path: Path) -> None:
    folder = write(tmp_path / "argocd", argocd().replace("  - ../site\n", ""))
    documents = [document for document in upstream() if document["kind"] != "Deployment"]
    (folder / "install.yaml").write_text(yaml.safe_dump_all(documents))
    with pytest.raises(AssertionError, match=r"no matches for Id Deployment\S+argocd-server"):
        render(folder)


# --- Open WebUI ---------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """The data folder of the image, with a cache as Hugging Face's library writes it, and an empty volume."""
    image, volume = tmp_path / "image", tmp_path / "volume"
    (image / "cache/blobs").mkdir(parents=True)
    (image / "cache/snapshots").mkdir()
    (image / "cache/blobs/1").write_text("weights")
    (image / "cache/snapshots/model.bin").symlink_to("../blobs/1")
    volume.mkdir()
    return image, volume


def copy(image: Path, volume: Path) -> None:
    """Run the command of the init container."""
    (container,) = [
        each for each in pod_spec(rendered("open-webui"))["initContainers"] if each["name"] == "copy-models"
    ]
    *command, source, target = container["command"]
    assert (source, target) == ("/app/backend/data", "/data")
    subprocess.run([*command, image, volume], check=True)


def test_models_in_the_image_are_copied_to_the_volume(models: tuple[Path, Path]) -> None:
    image, volume = models
    copy(image, volume)
    assert (volume / "cache/snapshots/model.bin").read_text() == "weights"
    assert (volume / "cache/snapshots/model.bin").is_symlink()


def test_existing_files_of_the_volume_stay(models: tuple[Path, Path]) -> None:
    image, volume = models
    (volume / "cache/blobs").mkdir(parents=True)
    (volume / "cache/blobs/1").write_text("newer")
    (volume / "webui.db").write_text("chats")
    copy(image, volume)
    assert (volume / "cache/snapshots/model.bin").read_text() == "newer"
    assert (volume / "webui.db").read_text() == "chats"


def test_interrupted_copy_of_the_models_is_repeated(models: tuple[Path, Path]) -> None:
    image, volume = models
    (volume / ".copying").write_text("wei")
    copy(image, volume)
    assert sorted(str(path.relative_to(volume)) for path in volume.rglob("*") if not path.is_dir()) == [
        "cache/blobs/1",
        "cache/snapshots/model.bin",
    ]
    assert (volume / "cache/blobs/1").read_text() == "weights"


# --- FreeIPA ------------------------------------------------------------------------------------------


def test_hostname_of_freeipa_is_its_name() -> None:
    """The image stores the container's hostname at the first start, and installs itself under this name."""
    documents = rendered("freeipa")
    assert pod_spec(documents)["hostnameOverride"] == configuration(documents, "lifecycle")["TS_HOSTNAME"]


def test_documented_snippets_for_freeipa_are_valid() -> None:
    page = (DEPLOY / "services/freeipa/README.md").read_text()
    (toml,) = blocks(page, "toml")
    plugin = tomllib.loads(toml.text)["plugins"]["io.containerd.cri.v1.runtime"]
    assert plugin["containerd"]["runtimes"]["runc"]["cgroup_writable"] is True
    (device,) = blocks(page, "text")
    name = json.loads(shlex.split(device.text)[1])["name"]
    limits = containers(pod_spec(rendered("freeipa")))["tailscale"]["resources"]["limits"]
    assert limits[f"squat.ai/{name}"] == "1"
