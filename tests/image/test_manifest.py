"""build/ as kubectl renders it: valid, complete, and about the scripts that are really there."""

from __future__ import annotations

import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.image.tools import BUILD, IMAGE, ROOT, render

ARCHIVE = "/var/lib/tailscale-lifecycle-image.tar"

OLDEST, *_, NEWEST = (version.rpartition(".")[0] for version in kubernetes_validate.utils.all_versions())

UNKNOWN_TO_1_29 = "appArmorProfile"
"""API servers that do not know it go by the annotation beside it."""

BUILDAHS_OWN = {"BUILDAH_ISOLATION", "CONTAINERS_STORAGE_CONF", "TMPDIR"}

SCRIPTS = {"build": ["archive.sh", "build.sh"], "import": ["archive.sh", "import.sh"]}
"""Containers, and what they run."""


@pytest.fixture
def deployment(tmp_path: Path, sources: Path) -> Path:
    """build/ with its sources packed, as the documented command leaves it."""
    folder = tmp_path / "build"
    shutil.copytree(BUILD, folder, ignore=shutil.ignore_patterns("sources.tar.gz"))
    shutil.copy(sources, folder)
    return folder


@pytest.fixture
def rendered(deployment: Path) -> dict[str, dict[str, Any]]:
    return render(deployment)


@pytest.fixture
def pod(rendered: dict[str, dict[str, Any]]) -> dict[str, Any]:
    spec: dict[str, Any] = rendered["DaemonSet"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {container["name"]: container for container in [*pod["initContainers"], *pod["containers"]]}


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container["env"]}


def host_path(pod: dict[str, Any], container: dict[str, Any], path: str) -> str:
    """Where a path inside a container is on the cluster node."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        if path == mount["mountPath"] or path.startswith(f"{mount['mountPath']}/"):
            outside: str = volumes[mount["name"]]["hostPath"]["path"]
            return outside + path.removeprefix(mount["mountPath"])
    raise AssertionError(f"{path} is not mounted")


def test_it_is_valid_for_the_newest_kubernetes(rendered: dict[str, dict[str, Any]]) -> None:
    for document in rendered.values():
        kubernetes_validate.validate(document, NEWEST, strict=True)


def test_it_is_valid_for_the_oldest_but_for_one_field_that_is_ignored(rendered: dict[str, dict[str, Any]]) -> None:
    daemon_set = deepcopy(rendered["DaemonSet"])
    pod = daemon_set["spec"]["template"]
    profile = pod["spec"]["initContainers"][0]["securityContext"].pop(UNKNOWN_TO_1_29)
    for document in [rendered["Namespace"], rendered["ConfigMap"], daemon_set]:
        kubernetes_validate.validate(document, OLDEST, strict=True)
    assert profile == {"type": "Unconfined"}
    annotations = pod["metadata"]["annotations"]
    assert annotations == {"container.apparmor.security.beta.kubernetes.io/build": "unconfined"}


def test_the_sources_and_the_scripts_come_with_it(
    rendered: dict[str, dict[str, Any]], pod: dict[str, Any], containers: dict[str, dict[str, Any]]
) -> None:
    config_map = rendered["ConfigMap"]
    assert config_map["metadata"]["namespace"] == rendered["DaemonSet"]["metadata"]["namespace"]
    volumes = [volume["name"] for volume in pod["volumes"] if "configMap" in volume]
    assert [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume] == [
        config_map["metadata"]["name"]
    ]
    assert "sources.tar.gz" in config_map["binaryData"]
    for name, container in containers.items():
        assert [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in volumes] == ["/build"]
        for script in SCRIPTS[name]:
            assert config_map["data"][script] == (BUILD / script).read_text()


def test_each_container_runs_its_script(containers: dict[str, dict[str, Any]]) -> None:
    assert containers["build"]["command"] == ["/bin/sh", "/build/build.sh"]
    assert containers["import"]["command"] == ["/bin/sh", "/build/import.sh"]
    for probe in ("startupProbe", "readinessProbe"):
        assert containers["import"][probe]["exec"]["command"] == ["/bin/sh", "/build/import.sh", "check"]


def test_import_is_never_killed_for_not_being_ready(containers: dict[str, dict[str, Any]]) -> None:
    """With an archive that is refused it never is, and goes on guarding the image that is there."""
    probe = containers["import"]["startupProbe"]
    assert "livenessProbe" not in containers["import"]
    assert probe["failureThreshold"] * probe["periodSeconds"] > 10 * 365 * 24 * 3600


def test_a_cluster_node_that_is_down_does_not_hold_up_a_large_cluster(rendered: dict[str, dict[str, Any]]) -> None:
    assert rendered["DaemonSet"]["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"].endswith("%")


def test_changed_sources_roll_it_and_unchanged_ones_do_not(deployment: Path) -> None:
    before = render(deployment)["DaemonSet"]
    assert render(deployment)["DaemonSet"] == before
    with (deployment / "sources.tar.gz").open("ab") as sources:
        sources.write(b"\0")
    assert render(deployment)["DaemonSet"]["spec"]["template"] != before["spec"]["template"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_variable_is_one_that_its_script_reads(containers: dict[str, dict[str, Any]], name: str) -> None:
    scripts = "".join((BUILD / script).read_text() for script in SCRIPTS[name])
    read = set(re.findall(r"\$\{?([A-Z][A-Z_]+)", scripts))
    assert set(environment(containers[name])) - BUILDAHS_OWN <= read


@pytest.mark.parametrize("name", SCRIPTS)
def test_each_variable_that_a_script_documents_is_there(containers: dict[str, dict[str, Any]], name: str) -> None:
    """But what only matters elsewhere: the cluster has one builder."""
    documented = set(re.findall(r"^# ([A-Z][A-Z_]+)  ", (BUILD / f"{name}.sh").read_text(), re.MULTILINE))
    assert documented - {"BUILDER"} <= set(environment(containers[name]))


def test_both_containers_mean_the_same_archive(pod: dict[str, Any], containers: dict[str, dict[str, Any]]) -> None:
    for container in containers.values():
        assert host_path(pod, container, environment(container)["ARCHIVE"]) == ARCHIVE


def test_every_path_that_a_variable_names_is_mounted(containers: dict[str, dict[str, Any]]) -> None:
    for container in containers.values():
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        for value in environment(container).values():
            if value.startswith("/"):
                assert any(value == mount or value.startswith(f"{mount}/") for mount in mounts), value


def test_the_socket_is_looked_for_where_it_is_mounted(
    pod: dict[str, Any], containers: dict[str, dict[str, Any]]
) -> None:
    sockets = set(re.findall(r"/\S+containerd\.sock", (BUILD / "import.sh").read_text()))
    assert sockets == {"/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock"}
    for socket in sockets:
        assert host_path(pod, containers["import"], socket) == socket


def test_it_is_on_every_cluster_node(pod: dict[str, Any]) -> None:
    assert pod["tolerations"] == [{"operator": "Exists"}]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}


def test_nothing_is_pulled_that_is_there(containers: dict[str, dict[str, Any]]) -> None:
    for container in containers.values():
        assert container["imagePullPolicy"] == "IfNotPresent"
        # A tag that moves would be another image on each cluster node.
        assert re.search(r":v?\d+\.\d+\.\d+", container["image"])


def test_neither_container_has_a_token(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False


def test_the_import_has_no_capability_and_a_read_only_root(containers: dict[str, dict[str, Any]]) -> None:
    assert containers["import"]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def test_each_capability_has_its_reason_beside_it(containers: dict[str, dict[str, Any]]) -> None:
    reasons = dict(re.findall(r"^ +- ([A-Z_]+) +# (.+)$", (BUILD / "daemonset.yaml").read_text(), re.MULTILINE))
    added = containers["build"]["securityContext"]["capabilities"]["add"]
    # The last two share theirs.
    assert [name for name in added if name not in reasons] == ["SETUID"]


def test_nothing_names_an_architecture() -> None:
    for path in [ROOT / "Containerfile", ROOT / "scripts/image", *BUILD.iterdir()]:
        if path.suffix != ".gz" and path.is_file():
            assert re.search(r"amd64|arm64|aarch64|x86|linux-gnu", path.read_text()) is None, path


def test_the_base_is_pinned_by_tag_and_by_digest() -> None:
    containerfile = (ROOT / "Containerfile").read_text()
    pinned = r"^ARG BASE_IMAGE=docker\.io/library/debian:\S+-slim@sha256:[0-9a-f]{64}$"
    assert re.search(pinned, containerfile, re.MULTILINE)


def test_the_scripts_mean_the_image_that_the_manifests_use() -> None:
    assert f"\nIMAGE={IMAGE}\n" in (BUILD / "archive.sh").read_text()
