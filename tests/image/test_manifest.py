"""Test that the manifests in build/, as kubectl renders them, are valid, and that they match the scripts in build/."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import kubernetes_validate
import pytest

from tests.image.tools import BUILD, ROOT
from tests.pod.rendering import NEWEST_KUBERNETES, Document, of_kind, pod_spec, render, workload_resource
from tests.pod.rendering import containers as containers_of

ARCHIVE = "/var/lib/tailscale-lifecycle-image.tar"
"""The path of the image archive on a cluster node."""

OLDEST_WITH_SCHEMA = kubernetes_validate.utils.all_versions()[0].rpartition(".")[0]
"""The oldest minor version of Kubernetes whose schemas kubernetes_validate contains."""

BUILDAH_VARIABLES = {"BUILDAH_ISOLATION", "CONTAINERS_STORAGE_CONF", "TMPDIR"}
"""Variables that only Buildah reads. The scripts do not read them."""

SCRIPTS = {"build": ["archive.sh", "build.sh"], "import": ["archive.sh", "import.sh"]}
"""The scripts that each container uses."""


@pytest.fixture
def build_folder(tmp_path: Path, sources: Path) -> Path:
    """A copy of build/ with packed sources."""
    folder = tmp_path / "build"
    shutil.copytree(BUILD, folder, ignore=shutil.ignore_patterns("sources.tar.gz"))
    shutil.copy(sources, folder)
    return folder


@pytest.fixture
def documents(build_folder: Path) -> list[Document]:
    return render(build_folder)


@pytest.fixture
def pod(documents: list[Document]) -> Document:
    return pod_spec(documents)


@pytest.fixture
def containers(pod: Document) -> dict[str, Document]:
    return containers_of(pod)


def environment(container: Document) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


def host_path(pod: Document, container: Document, path: str) -> str:
    """Return the path on the cluster node that is mounted at a path in a container."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        if path == mount["mountPath"] or path.startswith(f"{mount['mountPath']}/"):
            volume: str = volumes[mount["name"]]["hostPath"]["path"]
            return volume + path.removeprefix(mount["mountPath"])
    raise AssertionError(f"{path} is not mounted")


def test_manifests_match_the_schemas_of_the_oldest_and_newest_kubernetes(documents: list[Document]) -> None:
    """Kubernetes before 1.30 has an annotation instead of the field appArmorProfile."""
    for document in documents:
        kubernetes_validate.validate(document, NEWEST_KUBERNETES, strict=True)
    template = workload_resource(documents)["spec"]["template"]
    profile = template["spec"]["initContainers"][0]["securityContext"].pop("appArmorProfile")
    for document in documents:
        kubernetes_validate.validate(document, OLDEST_WITH_SCHEMA, strict=True)
    assert profile == {"type": "Unconfined"}
    annotations = template["metadata"]["annotations"]
    assert annotations == {"container.apparmor.security.beta.kubernetes.io/build": "unconfined"}


def test_config_map_has_sources_and_scripts(
    documents: list[Document], pod: Document, containers: dict[str, Document]
) -> None:
    (config_map,) = of_kind(documents, "ConfigMap")
    assert config_map["metadata"]["namespace"] == workload_resource(documents)["metadata"]["namespace"]
    [volume] = [volume for volume in pod["volumes"] if "configMap" in volume]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    assert "sources.tar.gz" in config_map["binaryData"]
    for name, container in containers.items():
        mounts = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == volume["name"]]
        assert mounts == ["/build"]
        for script in SCRIPTS[name]:
            assert config_map["data"][script] == (BUILD / script).read_text()


def test_each_container_runs_its_script(containers: dict[str, Document]) -> None:
    assert containers["build"]["command"] == ["/bin/sh", "/build/build.sh"]
    assert containers["import"]["command"] == ["/bin/sh", "/build/import.sh"]
    for probe in ("startupProbe", "readinessProbe"):
        assert containers["import"][probe]["exec"]["command"] == ["/bin/sh", "/build/import.sh", "check"]


def test_import_container_is_never_restarted_by_a_probe(containers: dict[str, Document]) -> None:
    """With an invalid archive, the container never becomes ready, but it must keep the existing image pinned."""
    probe = containers["import"]["startupProbe"]
    assert "livenessProbe" not in containers["import"]
    ten_years_s = 10 * 365 * 24 * 3600
    assert probe["failureThreshold"] * probe["periodSeconds"] > ten_years_s


def test_cluster_node_that_is_down_does_not_block_the_rollout(documents: list[Document]) -> None:
    """With the default of 1, a single cluster node would block it, even in a large cluster."""
    update = workload_resource(documents)["spec"]["updateStrategy"]["rollingUpdate"]
    assert update["maxUnavailable"].endswith("%")


def test_daemon_set_is_rolled_out_only_if_the_sources_have_changed(build_folder: Path) -> None:
    before = workload_resource(render(build_folder))
    assert workload_resource(render(build_folder)) == before
    with (build_folder / "sources.tar.gz").open("ab") as sources:
        sources.write(b"\0")
    assert workload_resource(render(build_folder))["spec"]["template"] != before["spec"]["template"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_manifest_sets_all_documented_variables_and_no_unused_ones(containers: dict[str, Document], name: str) -> None:
    """BUILDER is not in the manifest, because the container of the DaemonSet has only Buildah."""
    documented = set(re.findall(r"^# ([A-Z][A-Z_]+)  ", (BUILD / f"{name}.sh").read_text(), re.MULTILINE))
    assert documented - {"BUILDER"} <= set(environment(containers[name]))
    scripts = "".join((BUILD / script).read_text() for script in SCRIPTS[name])
    variables_in_scripts = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", scripts))
    assert set(environment(containers[name])) - BUILDAH_VARIABLES <= variables_in_scripts


def test_build_and_import_containers_use_the_same_archive(pod: Document, containers: dict[str, Document]) -> None:
    for container in containers.values():
        assert host_path(pod, container, environment(container)["ARCHIVE"]) == ARCHIVE


def test_every_path_in_a_variable_is_mounted(containers: dict[str, Document]) -> None:
    for container in containers.values():
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        for value in environment(container).values():
            if value.startswith("/"):
                assert any(value == mount or value.startswith(f"{mount}/") for mount in mounts), value


def test_containerd_sockets_of_the_script_are_mounted(pod: Document, containers: dict[str, Document]) -> None:
    sockets = set(re.findall(r"/\S+containerd\.sock", (BUILD / "import.sh").read_text()))
    assert sockets == {"/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock"}
    for socket in sockets:
        assert host_path(pod, containers["import"], socket) == socket


def test_pod_runs_on_every_cluster_node_without_a_service_account_token(pod: Document) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}


def test_images_are_pulled_only_if_missing_and_have_version_tags(containers: dict[str, Document]) -> None:
    for container in containers.values():
        assert container["imagePullPolicy"] == "IfNotPresent"
        # With a moving tag, cluster nodes would have different images.
        assert re.search(r":v?\d+\.\d+\.\d+", container["image"])


def test_import_container_has_no_capabilities_and_a_read_only_root(containers: dict[str, Document]) -> None:
    assert containers["import"]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def test_each_capability_has_a_comment_with_the_reason(containers: dict[str, Document]) -> None:
    explained = re.findall(r"^ +- ([A-Z_]+) +# .+$", (BUILD / "daemonset.yaml").read_text(), re.MULTILINE)
    assert explained == containers["build"]["securityContext"]["capabilities"]["add"]


def test_no_file_depends_on_an_architecture() -> None:
    for path in [ROOT / "Containerfile", ROOT / "scripts/image", *BUILD.iterdir()]:
        if path.suffix != ".gz" and path.is_file():
            assert re.search(r"amd64|arm64|aarch64|x86|linux-gnu", path.read_text()) is None, path


def test_base_image_is_pinned_by_tag_and_digest() -> None:
    containerfile = (ROOT / "Containerfile").read_text()
    pinned = r"^ARG BASE_IMAGE=(docker\.io/library/debian:\S+-slim@sha256:[0-9a-f]{64})$"
    (base_image,) = re.findall(pinned, containerfile, re.MULTILINE)
    # The full tests in CI run in the same image.
    assert f" image: {base_image}\n" in (ROOT / ".github/workflows/test.yaml").read_text()
