"""Test the containers of the DaemonSet in build/, which containerd runs as the manifest describes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.image.tools import (
    BUILD,
    DEFAULT_CAPABILITIES,
    IMAGE,
    PIN,
    Archive,
    Containerd,
    ImageBuild,
    run,
    run_checked,
)
from tests.pod.rendering import containers, pod_spec, render
from tests.real.programs import eventually

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ClusterNode:
    """A simulated cluster node: a folder for its root, and a containerd that runs the pod.

    The containers use Debian's Buildah and ctr instead of the images in the manifest, which need a registry.

    Args:
        root: the folder that is the root of the cluster node.
        tools: a root file system with Buildah and ctr.
        config_map: a copy of build/, with the packed sources.
    """

    def __init__(self, root: Path, containerd: Containerd, tools: Path, config_map: Path) -> None:
        self.root = root
        self.containerd = containerd
        self._tools = tools
        self._config_map = config_map
        self._pod = pod_spec(render(config_map))
        self.archive = Archive(root / "var/lib/tailscale-lifecycle-image.tar")
        self.termination_log = root / "termination-log"
        self.termination_log.touch()
        for folder in ("var/lib", "run/containerd", "run/k3s/containerd"):
            (root / folder).mkdir(parents=True, exist_ok=True)

    def _volume(self, name: str) -> Path:
        volume = next(volume for volume in self._pod["volumes"] if volume["name"] == name)
        if "hostPath" in volume:
            path: str = volume["hostPath"]["path"]
            return self.root / path.removeprefix("/")
        if "configMap" in volume:
            return self._config_map
        empty = self.root / "volumes" / name
        empty.mkdir(parents=True, exist_ok=True)
        return empty

    def flags_for(self, container: Mapping[str, Any], **variables: str) -> list[str]:
        """Translate the manifest of a container into flags of `ctr run`."""
        context = container["securityContext"]
        added = set(context["capabilities"].get("add", []))
        flags = ["--rootfs", "--seccomp", f"--env=PATH={PATH}"]
        flags += ["--read-only"] if context["readOnlyRootFilesystem"] else []
        flags += ["--allow-new-privs"] if context["allowPrivilegeEscalation"] else []
        flags += [f"--cap-drop=CAP_{name}" for name in sorted(DEFAULT_CAPABILITIES - added)]
        flags += [f"--cap-add=CAP_{name}" for name in sorted(added - DEFAULT_CAPABILITIES)]
        environment = {variable["name"]: variable["value"] for variable in container["env"]} | variables
        flags += [f"--env={name}={value}" for name, value in environment.items()]
        for mount in container["volumeMounts"]:
            source = self._volume(mount["name"]) / mount.get("subPath", "")
            if "subPath" in mount:
                source.mkdir(exist_ok=True)
            mode = "ro" if mount.get("readOnly") else "rw"
            flags.append(bind(source, mount["mountPath"], mode))
        flags.append(bind(self.termination_log, "/dev/termination-log", "rw"))
        return flags

    def run_build_container(self, *flags: str, **variables: str) -> tuple[int, str]:
        """Run the init container until it exits. Return its exit status and its output."""
        container = containers(self._pod)["build"]
        with self.containerd.container(
            "build",
            *self.flags_for(container, **variables),
            *flags,
            image=str(self._tools),
            command=container["command"],
        ) as process:
            output, errors = process.communicate(timeout=240)
        return process.returncode, output + errors

    def run_import_container(self) -> Any:
        """Return a context manager that runs the main container during its block."""
        container = containers(self._pod)["import"]
        return self.containerd.container(
            "import", *self.flags_for(container), image=str(self._tools), command=container["command"]
        )

    def is_ready(self) -> bool:
        """Run the readiness probe as the kubelet does."""
        command = containers(self._pod)["import"]["readinessProbe"]["exec"]["command"]
        probe = [*self.containerd.ctr, "task", "exec", "--exec-id", "probe", "import", *command]
        return run(probe).returncode == 0


def bind(source: Path, target: str, mode: str) -> str:
    return f"--mount=type=bind,src={source},dst={target},options=rbind:{mode}"


@pytest.fixture(params=["run/containerd"])
def cluster_node(
    request: pytest.FixtureRequest,
    scratch_dir: Path,
    debian: Mapping[str, Path],
    sources: Path,
) -> Iterator[ClusterNode]:
    """A cluster node. The parameter of the fixture is the folder of containerd's socket on the node."""
    root = Path(tempfile.mkdtemp(prefix="n", dir=scratch_dir))
    config_map = root / "config-map"
    shutil.copytree(BUILD, config_map, ignore=shutil.ignore_patterns("sources.tar.gz"))
    shutil.copy(sources, config_map)
    # As on a real cluster node, the containerd that runs the pod is the one into which the pod imports the image.
    containerd = Containerd(root, socket=root / request.param / "containerd.sock")
    tools = debian["tools"]
    shutil.copy("/etc/resolv.conf", tools / "etc/resolv.conf")
    cluster_node = ClusterNode(root, containerd, tools, config_map)
    containerd.start()
    yield cluster_node
    containerd.stop()
    shutil.rmtree(root, ignore_errors=True)


def test_pod_builds_and_imports_the_image(
    cluster_node: ClusterNode,
    shared_build: ImageBuild,
    scratch_dir: Path,
    pip_volumes: list[str],
) -> None:
    # The build reads the base image from a file instead of a registry.
    base = scratch_dir / "base.oci"
    run_checked(
        ["buildah", "push", "--quiet", "localhost/debian:test", f"oci-archive:{base}"], env=shared_build.environment
    )
    flags = [bind(base, "/base.oci", "ro")]
    volumes = []
    for number, volume in enumerate(pip_volumes):
        source, target, _ = volume.split(":")
        # Mount the file into the init container, and from there into the container in which Buildah runs pip.
        flags.append(bind(Path(source), f"/host{number}", "ro"))
        volumes.append(f"--volume /host{number}:{target}:ro")
    variables = {"BASE_IMAGE": "oci-archive:/base.oci", "BUILD_FLAGS": " ".join(volumes)}

    status, output = cluster_node.run_build_container(*flags, **variables)
    assert status == 0, output
    # `shared_build` was built with another Buildah, but the files and times are the same.
    assert cluster_node.archive.files() == shared_build.archive.files()
    assert cluster_node.archive.config["created"] == shared_build.archive.config["created"]

    with cluster_node.run_import_container():
        eventually(cluster_node.is_ready, "the probe succeeds")
        image = cluster_node.containerd.images()[IMAGE]
        assert (image.digest, image.labels[PIN]) == (cluster_node.archive.digest, "pinned")


@pytest.mark.parametrize("cluster_node", ["run/k3s/containerd"], indirect=True)
def test_pod_prefers_the_socket_of_k3s(cluster_node: ClusterNode, shared_build: ImageBuild, tmp_path: Path) -> None:
    """If Docker runs on a k3s node, there is a second containerd, which the kubelet does not use."""
    (tmp_path / "other").mkdir()
    other = Containerd(tmp_path / "other", socket=cluster_node.root / "run/containerd/containerd.sock")
    shutil.copy(shared_build.archive.path, cluster_node.archive.path)
    other.start()
    try:
        with cluster_node.run_import_container():
            eventually(cluster_node.is_ready, "the probe succeeds")
        assert cluster_node.containerd.images()[IMAGE].digest == shared_build.archive.digest
        assert other.images() == {}
    finally:
        other.stop()
