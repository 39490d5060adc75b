"""import.sh with a real containerd: imports, repairs and refused archives."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.image.tools import (
    IMAGE,
    PIN,
    Archive,
    Builds,
    Containerd,
    Importer,
    checked,
    importing,
    name_as_docker_does,
    wait_until,
)


@pytest.fixture
def archive(builds: Builds) -> Archive:
    """The archive, which the test may change."""
    return builds.archive


@pytest.fixture
def importer(containerd: Containerd, archive: Archive, tmp_path: Path) -> Iterator[Importer]:
    """A running import.sh that has finished its first import."""
    with importing(containerd, archive, tmp_path) as importer:
        importer.wait_until_ready()
        wait_until(
            lambda: is_settled(containerd),
            within_s=60,
            what="the image is imported and known to the CRI plugin",
            log=lambda: importer.log,
        )
        yield importer


def names(images: Iterable[str]) -> list[str]:
    """Return the names that are not digests."""
    return [name for name in images if not name.startswith("sha256:")]


def is_settled(containerd: Containerd) -> bool:
    """Return True if import.sh and the CRI plugin have finished. Both continue after the image is ready."""
    images = containerd.images()
    is_managed = all(image.labels.get("io.cri-containerd.image") == "managed" for image in images.values())
    # Two names: the image's, and the digest of its configuration, which the CRI plugin adds.
    return is_managed and len(images) == 2 and names(images) == [IMAGE]


def rename_image(unpacked: Path) -> None:
    index = unpacked / "index.json"
    index.write_text(index.read_text().replace(IMAGE, "docker.io/library/another:latest"))


def remove_name(unpacked: Path) -> None:
    index = json.loads((unpacked / "index.json").read_text())
    del index["manifests"][0]["annotations"]
    (unpacked / "index.json").write_bytes(as_json(index))


def rename_image_of_docker(unpacked: Path) -> None:
    """The OCI annotation still has the tag of our image, but containerd ignores it."""
    name_as_docker_does(unpacked)
    rename_image(unpacked)


def damage_layer(unpacked: Path) -> None:
    """Change one byte in the middle of the largest blob."""
    layer = max((unpacked / "blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size)
    content = bytearray(layer.read_bytes())
    content[len(content) // 2] ^= 1
    layer.write_bytes(content)


def delete_layer(unpacked: Path) -> None:
    max((unpacked / "blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size).unlink()


class Unpacked:
    """An unpacked archive, whose digests are correct again after each change."""

    def __init__(self, folder: Path) -> None:
        self._index = folder / "index.json"
        self._blobs = folder / "blobs/sha256"
        self.index = json.loads(self._index.read_text())
        self.manifest = self._read(self.index["manifests"][0])
        self.config = self._read(self.manifest["config"])

    def _read(self, entry: dict[str, Any]) -> Any:
        return json.loads((self._blobs / entry["digest"].removeprefix("sha256:")).read_text())

    def put(self, entry: dict[str, Any], content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        (self._blobs / digest).write_bytes(content)
        entry.update(digest=f"sha256:{digest}", size=len(content))

    def save(self) -> None:
        self.put(self.manifest["config"], as_json(self.config))
        self.put(self.index["manifests"][0], as_json(self.manifest))
        self._index.write_bytes(as_json(self.index))


def as_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def change_label(folder: Path) -> None:
    """Create another valid image."""
    unpacked = Unpacked(folder)
    unpacked.config["config"]["Labels"]["org.opencontainers.image.version"] = "another"
    unpacked.save()


def add_invalid_layer(folder: Path) -> None:
    """All digests match, but a layer is not a valid archive. Only containerd detects this."""
    unpacked = Unpacked(folder)
    # A new diff ID, because containerd does not unpack a layer that it has already.
    unpacked.config["rootfs"]["diff_ids"][-1] = f"sha256:{'0' * 64}"
    unpacked.put(unpacked.manifest["layers"][-1], gzip.compress(b"not a layer"))
    unpacked.save()


def test_image_is_imported_under_its_exact_name_and_pinned(
    containerd: Containerd, archive: Archive, importer: Importer
) -> None:
    image = containerd.images()[IMAGE]
    assert image.digest == archive.digest
    assert image.labels[PIN] == "pinned"


def test_image_is_visible_to_the_kubelet(containerd: Containerd, importer: Importer) -> None:
    """containerd's CRI plugin labels the images that it shows to the kubelet."""
    assert containerd.images()[IMAGE].labels["io.cri-containerd.image"] == "managed"
    assert names(containerd.images()) == [IMAGE]


def test_pod_is_not_ready_before_the_first_import(containerd: Containerd, archive: Archive, tmp_path: Path) -> None:
    probe = Importer(containerd, archive, tmp_path).check()
    assert probe.returncode == 1
    # Without an output, Kubernetes shows an event without a reason.
    assert IMAGE in probe.stdout


def test_deleted_image_is_imported_again(containerd: Containerd, importer: Importer) -> None:
    containerd.delete_image()
    assert IMAGE in importer.check().stdout
    importer.wait_until_ready()
    assert importer.check().stdout == ""
    assert containerd.images()[IMAGE].labels[PIN] == "pinned"


def test_image_without_snapshots_is_unpacked_again(containerd: Containerd, importer: Importer) -> None:
    """Its name, its pin and its content exist, but no pod can start from it."""
    importer.stop()
    containerd.lose_snapshots()
    assert not importer.is_ready()
    importer.start()
    importer.wait_until_ready()


def test_archive_of_docker_is_imported_under_the_full_name(
    containerd: Containerd, archive: Archive, tmp_path: Path
) -> None:
    archive.rewrite(name_as_docker_does, archive.path.with_name("scratch"))
    with importing(containerd, archive, tmp_path) as importer:
        importer.wait_until_ready()
    assert containerd.images()[IMAGE].digest == archive.digest


def test_script_runs_with_busybox(containerd: Containerd, archive: Archive, tmp_path: Path) -> None:
    """The image of the container is based on Alpine."""
    tools = tmp_path / "tools"
    tools.mkdir()
    checked(["busybox", "--install", "-s", tools])
    importer = Importer(containerd, archive, tmp_path, path=f"{tools}:{Path(checked(['which', 'ctr']).strip()).parent}")
    importer.start(["busybox", "sh"])
    try:
        importer.wait_until_ready()
        containerd.unpin_image()
        wait_until_pinned(containerd)
    finally:
        importer.stop()


def test_unpinned_image_is_pinned_again(containerd: Containerd, importer: Importer) -> None:
    containerd.unpin_image()
    assert not importer.is_ready()
    importer.wait_until_ready()
    assert containerd.images()[IMAGE].labels[PIN] == "pinned"


def test_name_of_another_image_is_corrected(containerd: Containerd, archive: Archive, importer: Importer) -> None:
    """Another process has imported another image under the name."""
    other = Archive(archive.path.with_name("other.tar"))
    shutil.copy(archive.path, other.path)
    other.rewrite(change_label, archive.path.with_name("scratch"))
    checked([*containerd.ctr, "images", "import", other.path])
    assert not importer.is_ready()
    importer.wait_until_ready()
    assert containerd.images()[IMAGE].digest == archive.digest != other.digest


def test_new_archive_replaces_the_image(
    containerd: Containerd, archive: Archive, importer: Importer, builds: Builds, tmp_path: Path
) -> None:
    """The next pod of the DaemonSet finds the image of the previous one."""
    importer.stop()
    before = containerd.images()[IMAGE].digest
    builds.change_sources(lambda sources: (sources / "LICENSE").write_text("another\n"))
    assert builds.build().returncode == 0
    second = tmp_path / "second"
    second.mkdir()
    with importing(containerd, builds.archive, second) as successor:
        successor.wait_until_ready()
        wait_until(
            lambda: names(containerd.images()) == [IMAGE],
            within_s=60,
            what="the image has one name",
            log=lambda: successor.log,
        )
    image = containerd.images()[IMAGE]
    assert image.digest == builds.archive.digest != before
    assert image.labels[PIN] == "pinned"


def test_temporary_name_of_an_interrupted_import_is_deleted(containerd: Containerd, importer: Importer) -> None:
    checked([*containerd.ctr, "images", "tag", IMAGE, "localhost/tailscale-lifecycle:next"])
    wait_until(
        lambda: names(containerd.images()) == [IMAGE],
        within_s=60,
        what="the image has one name",
        log=lambda: importer.log,
    )


def test_restarted_container_reads_the_archive_again(
    containerd: Containerd, archive: Archive, importer: Importer
) -> None:
    """The state folder survives the restart, but the archive has changed."""
    importer.stop()
    archive.rewrite(change_label, archive.path.with_name("scratch"))
    importer.start()
    wait_until(
        lambda: containerd.images()[IMAGE].digest == archive.digest,
        within_s=60,
        what="the new image",
        log=lambda: importer.log,
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(None, "is truncated", id="truncated"),
        pytest.param(rename_image, '"docker.io/library/another:latest"', id="another name"),
        pytest.param(
            rename_image_of_docker, '"docker.io/library/another:latest"', id="another name in an archive of docker"
        ),
        pytest.param(remove_name, 'contains ""', id="no name"),
        pytest.param(damage_layer, "is damaged", id="damaged layer"),
        pytest.param(delete_layer, "is damaged", id="missing layer"),
    ],
)
def test_invalid_archive_is_refused_and_the_image_is_kept(
    containerd: Containerd, archive: Archive, importer: Importer, tmp_path: Path, damage: object, reason: str
) -> None:
    importer.stop()
    before = containerd.images()
    if callable(damage):
        archive.rewrite(damage, archive.path.with_name("scratch"))
    else:
        os.truncate(archive.path, archive.path.stat().st_size * 2 // 3)
    second = tmp_path / "second"
    second.mkdir()
    with importing(containerd, archive, second) as successor:
        successor.wait_for_log(reason)
        assert not successor.is_ready()
        assert reason in successor.check().stdout
        assert containerd.images() == before
        # Pods use the existing image, so it is pinned even now.
        containerd.unpin_image()
        wait_until_pinned(containerd)


def wait_until_pinned(containerd: Containerd) -> None:
    wait_until(lambda: containerd.images()[IMAGE].labels.get(PIN) == "pinned", within_s=60, what="the image is pinned")


def test_image_that_cannot_be_unpacked_never_gets_the_name(
    containerd: Containerd, archive: Archive, importer: Importer, tmp_path: Path
) -> None:
    """The listing includes the time of the last change of the name."""
    importer.stop()
    before = as_listed(containerd)
    archive.rewrite(add_invalid_layer, archive.path.with_name("scratch"))
    second = tmp_path / "second"
    second.mkdir()
    with importing(containerd, archive, second) as successor:
        successor.wait_for_log("the import failed")
        wait_until(lambda: names(containerd.images()) == [IMAGE], within_s=60, what="the image has one name")
        assert not successor.is_ready()
        assert as_listed(containerd) == before
        containerd.unpin_image()
        wait_until_pinned(containerd)


def test_failed_import_is_retried_with_backoff(containerd: Containerd, archive: Archive, tmp_path: Path) -> None:
    """Each attempt reads and writes the whole image."""
    archive.rewrite(add_invalid_layer, archive.path.with_name("scratch"))
    with importing(containerd, archive, tmp_path) as importer:
        importer.wait_for_log("skipping 4 checks")
        # The failed attempt, and two checks without an attempt.
        assert importer.log.partition("skipping 4 checks")[0].count("retrying in") == 3
        # The damaged image has no name that a pod could use.
        assert IMAGE not in containerd.images()


def as_listed(containerd: Containerd) -> str:
    """Return containerd's listing of the image, with the time of the last change of its name."""
    return checked([*containerd.ctr, "images", "ls", f"name=={IMAGE}"])


def test_refused_archive_creates_no_image(containerd: Containerd, archive: Archive, tmp_path: Path) -> None:
    archive.rewrite(rename_image, archive.path.with_name("scratch"))
    with importing(containerd, archive, tmp_path) as importer:
        importer.wait_for_log("not importing")
        assert containerd.images() == {}


def test_import_continues_after_a_restart_of_containerd(containerd: Containerd, importer: Importer) -> None:
    containerd.stop()
    assert not importer.is_ready()
    importer.wait_for_log("containerd does not respond")
    assert "containerd does not respond" in importer.check().stdout
    containerd.start()
    containerd.delete_image()
    importer.wait_until_ready()


def test_sigterm_stops_the_script(importer: Importer) -> None:
    assert importer.stop() == 0


def test_pod_with_unchanged_sources_imports_nothing(
    containerd: Containerd, builds: Builds, importer: Importer, tmp_path: Path
) -> None:
    """Both containers run one after the other, without a builder."""
    importer.stop()
    second = tmp_path / "second"
    second.mkdir()
    assert builds.build(BUILDER="no-such-builder").returncode == 0
    with importing(containerd, builds.archive, second) as successor:
        successor.wait_until_ready()
        assert "importing" not in successor.log
