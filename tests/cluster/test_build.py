"""Build the image in a real cluster, with the DaemonSet of build/ and a local base image.

tests/image tests the scripts of the DaemonSet in more cases: unchanged sources, deleted images, and k3s.

The pods have no access to the internet. A proxy on the node's address forwards the requests of apt and pip, as
docs/image.md describes.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.cluster import images
from tests.cluster.cluster import Cluster, Document
from tests.cluster.images import Image
from tests.cluster.node import NODE_ADDRESS
from tests.image.tools import BUILD, IMAGE, PIN, Archive, ImageBuild
from tests.pod.network import run
from tests.pod.rendering import containers, pod_spec, render
from tests.real.programs import eventually
from tests.simulators.proxy import ProxySimulator

NAMESPACE: Final = "tailscale-lifecycle"
NAME: Final = "tailscale-lifecycle-image"
ARCHIVE: Final = "tailscale-lifecycle-image.tar"
BUILD_TIMEOUT_S: Final = 1200.0
"""The time limit for a build on a busy machine."""

PATCH: Final = """
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: any
spec:
  template:
    spec:
      initContainers:
        - name: build
          env:
            - name: BASE_IMAGE
              value: oci-archive:/settings/base.oci
            - name: BUILD_FLAGS
              value: {flags}
          volumeMounts:
            - name: settings
              mountPath: /settings
              readOnly: true
      volumes:
        - name: settings
          hostPath:
            path: /var/lib/build-settings
"""
"""A patch with which the build uses a base image, and settings for apt and pip, from a folder of the node.

The kustomization has a target for the patch, so the name in the patch does not matter.
"""


class AnyTarget(dict[str, str]):
    """The targets of a proxy that forwards requests to every server, at its real address."""

    def __contains__(self, target: object) -> bool:
        return True

    def __missing__(self, target: str) -> str:
        return target


@dataclass
class DaemonSet:
    """The DaemonSet of build/ in the cluster.

    Attributes:
        folder: has a copy of build/ in `build`, and a kustomization that patches it.
    """

    cluster: Cluster
    folder: Path

    def apply(self, sources: Path) -> None:
        """Apply the kustomization with these sources."""
        shutil.copy(sources, self.folder / "build/sources.tar.gz")
        self.cluster.kubectl("apply", "--server-side", "-k", self.folder)

    def wait_for_rollout(self) -> None:
        """Wait until the rollout is complete, as docs/image.md describes."""
        self.cluster.kubectl(
            "-n", NAMESPACE, "rollout", "status", f"daemonset/{NAME}", f"--timeout={BUILD_TIMEOUT_S:g}s"
        )

    def pod(self) -> Document:
        """Return the pod, which must be the only one that is not being deleted."""
        pods = self.cluster.pods(f"app.kubernetes.io/name={NAME}", NAMESPACE)
        (pod,) = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        return pod

    def image_row(self) -> list[str]:
        """Return the columns of the image in `ctr images ls`, of which the third is the digest; [] = no image."""
        lines = run(*self.cluster.node.ctr("images", "ls", f"name=={IMAGE}")).splitlines()[1:]
        return lines[0].split() if lines else []

    def is_pinned(self) -> bool:
        """Return True if the image has the label that protects it from the kubelet's garbage collection."""
        return any(f"{PIN}=pinned" in column for column in self.image_row())

    @property
    def archive(self) -> Archive:
        """The archive that the build has saved on the node."""
        return Archive(self.cluster.node.disk / ARCHIVE)


@pytest.fixture(autouse=True)
def _loopback_only() -> None:
    """Disable the global fixture of this name, which allows only connections to loopback.

    The proxy has to connect to the package registries.
    """


@pytest.fixture(scope="module")
def daemon_set(
    cluster: Cluster,
    debian: Mapping[str, Path],
    sources: Path,
    pip_volumes: list[str],
    image_archive: Path,
    scratch_dir: Path,
) -> Iterator[DaemonSet]:
    """Delete the image from the node, apply build/, and wait until the image is built."""
    folder = scratch_dir / "build-of-the-cluster"
    settings = cluster.node.disk / "build-settings"
    settings.mkdir()
    with ProxySimulator(AnyTarget()).serve(address=NODE_ADDRESS, network_namespace=cluster.host.inside()) as proxy:
        flags = write_settings(settings, debian["base"], pip_volumes, proxy)
        shutil.copytree(BUILD, folder / "build", ignore=shutil.ignore_patterns("sources.tar.gz"))
        patch = {"target": {"kind": "DaemonSet"}, "patch": PATCH.format(flags=flags)}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["build"], "patches": [patch]}))
        daemon_set = DaemonSet(cluster, folder)
        shutil.copy(sources, folder / "build/sources.tar.gz")
        load_tools(cluster, debian["tools"], folder)
        run(*cluster.node.ctr("images", "rm", "--sync", IMAGE))
        try:
            daemon_set.apply(sources)
            daemon_set.wait_for_rollout()
            yield daemon_set
        finally:
            cluster.kubectl("delete", "namespace", NAMESPACE)
            (cluster.node.disk / ARCHIVE).unlink(missing_ok=True)
            # Tests in other modules use the original image.
            cluster.node.load(image_archive)


def write_settings(folder: Path, base: Path, pip_volumes: list[str], proxy: str) -> str:
    """Write the base image and the settings of apt and pip into a folder, and return the value of BUILD_FLAGS."""
    images.write_archive({"localhost/debian:test": Image([base])}, folder / "base.oci")
    (folder / "apt.conf").write_text(f'Acquire::http::Proxy "{proxy}";\n')
    # The volumes are the configuration of pip, and the CA certificate that it may refer to.
    config, *certificates = pip_volumes
    (folder / "pip.conf").write_text(f"{Path(config.partition(':')[0]).read_text()}proxy = {proxy}\n")
    mounts = {"apt.conf": "/etc/apt/apt.conf.d/99proxy", "pip.conf": "/etc/pip.conf"}
    for certificate in certificates:
        source, target, _ = certificate.split(":")
        shutil.copy(source, folder / "ca.crt")
        mounts["ca.crt"] = target
    return " ".join(f"--volume /settings/{name}:{target}:ro" for name, target in mounts.items())


def load_tools(cluster: Cluster, tools: Path, folder: Path) -> None:
    """Load an image with Debian's Buildah and containerd, under the image names of both containers of the DaemonSet."""
    layer = folder / "tools.tar"
    with tarfile.open(layer, "w") as archive:
        for path in sorted(tools.iterdir()):
            if path.name not in {"dev", "proc", "sys"}:
                archive.add(path, path.name)
    spec = pod_spec(render(folder))
    cluster.load({container["image"]: Image([layer]) for container in containers(spec).values()})
    layer.unlink()


def test_image_is_built_imported_and_pinned(daemon_set: DaemonSet) -> None:
    assert daemon_set.image_row()[2] == daemon_set.archive.digest
    assert daemon_set.is_pinned()
    log = daemon_set.cluster.logs(daemon_set.pod()["metadata"]["name"], "build", NAMESPACE)
    assert f"saved /node/{ARCHIVE}" in log


def test_failed_build_reports_its_reason_and_keeps_the_image(
    daemon_set: DaemonSet, sources: Path, tmp_path: Path
) -> None:
    before = daemon_set.image_row()
    daemon_set.apply(changed_sources(sources, tmp_path, "Containerfile", "NONSENSE"))

    def description() -> str:
        selector = f"app.kubernetes.io/name={NAME}"
        return daemon_set.cluster.kubectl("-n", NAMESPACE, "describe", "pod", "-l", selector)

    eventually(
        lambda: "The build failed" in description(), "the reason", details=description, timeout_s=BUILD_TIMEOUT_S
    )
    assert "NONSENSE" in description()
    assert daemon_set.image_row() == before
    daemon_set.apply(sources)
    daemon_set.wait_for_rollout()


def test_changed_sources_are_rolled_out(daemon_set: DaemonSet, sources: Path, tmp_path: Path) -> None:
    pod, image_row = daemon_set.pod(), daemon_set.image_row()
    daemon_set.apply(changed_sources(sources, tmp_path, "LICENSE", "another"))
    daemon_set.wait_for_rollout()
    assert daemon_set.pod()["metadata"]["uid"] != pod["metadata"]["uid"]
    assert daemon_set.image_row()[2] == daemon_set.archive.digest != image_row[2]
    assert daemon_set.is_pinned()


def changed_sources(sources: Path, folder: Path, name: str, text: str) -> Path:
    """Return a copy of the sources with a line at the end of a file."""
    image_build = ImageBuild(folder, sources, os.environ)

    def append(unpacked: Path) -> None:
        with (unpacked / name).open("a") as file:
            file.write(f"{text}\n")

    image_build.change_sources(append)
    return image_build.sources
