"""Test import.sh with a real containerd.

The script imports the image and pins it, so that the kubelet does not delete it. If the image is changed or deleted,
the script imports the image again. It refuses invalid archives.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.image.tools import (
    BUILD,
    IMAGE,
    PIN,
    Archive,
    Containerd,
    ImageBuild,
    Importer,
    importing,
    name_like_docker_save,
    run,
    run_checked,
)
from tests.real.programs import eventually


@pytest.fixture
def archive(image_build: ImageBuild) -> Archive:
    """A copy of the archive of the image. The test may change it."""
    return image_build.archive


@pytest.fixture
def importer(containerd: Containerd, archive: Archive, tmp_path: Path) -> Iterator[Importer]:
    """A running import.sh that has finished its first import."""
    with importing(containerd, archive, tmp_path) as importer:
        importer.wait_until_ready()
        eventually(
            lambda: is_settled(containerd),
            "the image is imported and known to the CRI plugin",
            details=lambda: importer.log,
        )
        yield importer


def image_names(images: Iterable[str]) -> list[str]:
    """Return the names of images. Names that are digests are left out, because containerd's CRI plugin adds them."""
    return [name for name in images if not name.startswith("sha256:")]


def wait_until_only_name(containerd: Containerd, importer: Importer) -> None:
    eventually(
        lambda: image_names(containerd.images()) == [IMAGE],
        "the image has no other name",
        details=lambda: importer.log,
    )


def wait_until_pinned(containerd: Containerd) -> None:
    eventually(lambda: containerd.images()[IMAGE].labels.get(PIN) == "pinned", "the image is pinned")


def is_settled(containerd: Containerd) -> bool:
    """Return True if import.sh and containerd's CRI plugin have finished. The readiness probe succeeds earlier."""
    images = containerd.images()
    is_managed = all(image.labels.get("io.cri-containerd.image") == "managed" for image in images.values())
    # The two names are IMAGE, and the digest of the image's configuration, which the CRI plugin adds.
    return is_managed and len(images) == 2 and image_names(images) == [IMAGE]


# --- Changes of an unpacked archive -------------------------------------------------------------------


def rename_image(unpacked: Path) -> None:
    """Give the image another name."""
    index = unpacked / "index.json"
    index.write_text(index.read_text().replace(IMAGE, "docker.io/library/another:latest"))


def remove_name(unpacked: Path) -> None:
    """Remove the name of the image."""
    index = json.loads((unpacked / "index.json").read_text())
    del index["manifests"][0]["annotations"]
    (unpacked / "index.json").write_bytes(as_json(index))


def rename_image_in_docker_archive(unpacked: Path) -> None:
    """Rename the image in containerd's annotation. OCI's annotation keeps the tag, but takes no precedence."""
    name_like_docker_save(unpacked)
    rename_image(unpacked)


def largest_layer(unpacked: Path) -> Path:
    return max((unpacked / "blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size)


def damage_layer(unpacked: Path) -> None:
    """Change one byte in the middle of the largest layer."""
    layer = largest_layer(unpacked)
    content = bytearray(layer.read_bytes())
    content[len(content) // 2] ^= 1
    layer.write_bytes(content)


class Unpacked:
    """An unpacked archive whose documents can be changed.

    Attributes:
        index: the index of the archive, which contains the digest of the manifest.
        manifest: the manifest of the image, which contains the digests of the configuration and the layers.
        config: the configuration of the image.
    """

    def __init__(self, folder: Path) -> None:
        self._index = folder / "index.json"
        self._blobs = folder / "blobs/sha256"
        self.index = json.loads(self._index.read_text())
        self.manifest = self._read(self.index["manifests"][0])
        self.config = self._read(self.manifest["config"])

    def _read(self, entry: dict[str, Any]) -> Any:
        return json.loads((self._blobs / entry["digest"].removeprefix("sha256:")).read_text())

    def put(self, entry: dict[str, Any], content: bytes) -> None:
        """Write a blob, and set its digest and size in an entry of a document."""
        digest = hashlib.sha256(content).hexdigest()
        (self._blobs / digest).write_bytes(content)
        entry.update(digest=f"sha256:{digest}", size=len(content))

    def save(self) -> None:
        """Write the documents, with correct digests."""
        self.put(self.manifest["config"], as_json(self.config))
        self.put(self.index["manifests"][0], as_json(self.manifest))
        self._index.write_bytes(as_json(self.index))


def as_json(value: object) -> bytes:
    """Return the value as JSON without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def change_label(folder: Path) -> None:
    """Change a label, which results in another valid image."""
    unpacked = Unpacked(folder)
    unpacked.config["config"]["Labels"]["org.opencontainers.image.version"] = "another"
    unpacked.save()


def make_last_layer_invalid(folder: Path) -> None:
    """Replace the last layer by text. All digests match, so that only containerd detects the invalid layer."""
    unpacked = Unpacked(folder)
    # containerd would not unpack a layer with the old diff ID, because it has already unpacked one with this ID.
    unpacked.config["rootfs"]["diff_ids"][-1] = f"sha256:{'0' * 64}"
    unpacked.put(unpacked.manifest["layers"][-1], gzip.compress(b"not a layer"))
    unpacked.save()


def test_image_is_imported_under_its_full_name_pinned_and_visible_to_the_kubelet(
    containerd: Containerd, archive: Archive, importer: Importer
) -> None:
    images = containerd.images()
    assert image_names(images) == [IMAGE]
    assert images[IMAGE].digest == archive.digest
    assert images[IMAGE].labels[PIN] == "pinned"
    # containerd's CRI plugin sets this label on the images that it reports to the kubelet.
    assert images[IMAGE].labels["io.cri-containerd.image"] == "managed"


def test_pod_is_not_ready_before_the_first_import(containerd: Containerd, archive: Archive, tmp_path: Path) -> None:
    probe = Importer(containerd, archive, tmp_path).check()
    assert probe.returncode == 1
    # Kubernetes shows the output of a failed probe as the reason.
    assert IMAGE in probe.stdout


def import_other_image(containerd: Containerd, archive: Archive) -> None:
    """Import a different image under the same name, as another process might do."""
    other = Archive(archive.path.with_name("other.tar"))
    shutil.copy(archive.path, other.path)
    other.rewrite(change_label)
    run_checked([*containerd.ctr, "images", "import", other.path])
    assert other.digest != archive.digest


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda containerd, _archive: containerd.delete_image(), id="deleted"),
        pytest.param(lambda containerd, _archive: containerd.unpin_image(), id="unpinned"),
        pytest.param(import_other_image, id="replaced"),
    ],
)
def test_changed_image_is_restored(
    containerd: Containerd, archive: Archive, importer: Importer, change: Callable[[Containerd, Archive], None]
) -> None:
    change(containerd, archive)
    assert not importer.is_ready()
    importer.wait_until_ready()
    image = containerd.images()[IMAGE]
    assert (image.digest, image.labels[PIN]) == (archive.digest, "pinned")
    assert importer.check().stdout == ""


def test_image_without_snapshots_is_unpacked_again(containerd: Containerd, importer: Importer) -> None:
    """No pod can start from such an image, although its name, its pin and its content exist."""
    importer.stop()
    containerd.delete_snapshots()
    assert not importer.is_ready()
    importer.start()
    importer.wait_until_ready()


def test_archive_of_docker_save_is_imported_under_the_full_name(
    containerd: Containerd, archive: Archive, tmp_path: Path
) -> None:
    archive.rewrite(name_like_docker_save)
    with importing(containerd, archive, tmp_path) as importer:
        importer.wait_until_ready()
    assert containerd.images()[IMAGE].digest == archive.digest


def test_script_runs_with_busybox(containerd: Containerd, archive: Archive, tmp_path: Path) -> None:
    """The image of the container is based on Alpine, whose shell and tools are those of BusyBox."""
    tools = tmp_path / "tools"
    tools.mkdir()
    run_checked(["busybox", "--install", "-s", tools])
    importer = Importer(
        containerd, archive, tmp_path, path=f"{tools}:{Path(run_checked(['which', 'ctr']).strip()).parent}"
    )
    importer.start(["busybox", "sh"])
    try:
        importer.wait_until_ready()
        containerd.unpin_image()
        wait_until_pinned(containerd)
    finally:
        importer.stop()


def test_new_archive_replaces_the_image(
    containerd: Containerd, archive: Archive, importer: Importer, image_build: ImageBuild, tmp_path: Path
) -> None:
    """The next pod of the DaemonSet imports the archive, although the previous pod has imported an image."""
    importer.stop()
    before = containerd.images()[IMAGE].digest
    image_build.change_sources(lambda sources: (sources / "LICENSE").write_text("another\n"))
    image_build.run_checked()
    with importing(containerd, image_build.archive, tmp_path / "second") as successor:
        successor.wait_until_ready()
        wait_until_only_name(containerd, successor)
    image = containerd.images()[IMAGE]
    assert image.digest == image_build.archive.digest != before
    assert image.labels[PIN] == "pinned"


def test_temporary_name_of_an_interrupted_import_is_deleted(containerd: Containerd, importer: Importer) -> None:
    run_checked([*containerd.ctr, "images", "tag", IMAGE, "localhost/tailscale-lifecycle:next"])
    wait_until_only_name(containerd, importer)


def test_restarted_container_reads_the_archive_again(
    containerd: Containerd, archive: Archive, importer: Importer
) -> None:
    """The state folder still has the digest of the old archive."""
    importer.stop()
    archive.rewrite(change_label)
    importer.start()
    eventually(
        lambda: containerd.images()[IMAGE].digest == archive.digest,
        "the new image is imported",
        details=lambda: importer.log,
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(None, "is truncated", id="truncated"),
        pytest.param(rename_image, '"docker.io/library/another:latest"', id="another name"),
        pytest.param(
            rename_image_in_docker_archive,
            '"docker.io/library/another:latest"',
            id="another name in an archive of docker",
        ),
        pytest.param(remove_name, 'contains ""', id="no name"),
        pytest.param(damage_layer, "is damaged", id="damaged layer"),
        pytest.param(lambda unpacked: largest_layer(unpacked).unlink(), "is damaged", id="missing layer"),
    ],
)
def test_invalid_archive_is_refused_and_the_image_is_kept(
    containerd: Containerd,
    archive: Archive,
    importer: Importer,
    tmp_path: Path,
    damage: Callable[[Path], None] | None,
    reason: str,
) -> None:
    importer.stop()
    before = containerd.images()
    if damage is None:
        os.truncate(archive.path, archive.path.stat().st_size * 2 // 3)
    else:
        archive.rewrite(damage)
    with importing(containerd, archive, tmp_path / "second") as successor:
        successor.wait_for_log(reason)
        assert not successor.is_ready()
        assert reason in successor.check().stdout
        assert containerd.images() == before
        # The existing image stays pinned, because pods use the image.
        containerd.unpin_image()
        wait_until_pinned(containerd)


def image_listing(containerd: Containerd) -> str:
    """Return containerd's list entry for the image. It includes the time when the image's name was last changed."""
    return run_checked([*containerd.ctr, "images", "ls", f"name=={IMAGE}"])


def test_image_that_cannot_be_unpacked_never_gets_the_name(
    containerd: Containerd, archive: Archive, importer: Importer, tmp_path: Path
) -> None:
    importer.stop()
    before = image_listing(containerd)
    archive.rewrite(make_last_layer_invalid)
    with importing(containerd, archive, tmp_path / "second") as successor:
        successor.wait_for_log("the import failed")
        wait_until_only_name(containerd, successor)
        assert not successor.is_ready()
        assert image_listing(containerd) == before
        containerd.unpin_image()
        wait_until_pinned(containerd)


def test_failed_import_is_retried_with_backoff(containerd: Containerd, archive: Archive, tmp_path: Path) -> None:
    """Each attempt reads and writes the whole image, so the number of attempts must stay low."""
    archive.rewrite(make_last_layer_invalid)
    with importing(containerd, archive, tmp_path) as importer:
        importer.wait_for_log("skipping 4 checks")
        # The failed attempt and two checks without an attempt have logged this text.
        assert importer.log.partition("skipping 4 checks")[0].count("retrying in") == 3
        assert IMAGE not in containerd.images()


def test_missing_ctr_is_reported(tmp_path: Path) -> None:
    """The script does not report that containerd does not respond."""
    for tool in ("basename", "dirname", "rm"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    done = run(["/bin/sh", BUILD / "import.sh"], env={"PATH": str(tmp_path), "STATE": str(tmp_path)}, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "ctr" in done.stderr


def test_import_continues_after_a_restart_of_containerd(containerd: Containerd, importer: Importer) -> None:
    containerd.stop()
    assert not importer.is_ready()
    importer.wait_for_log("containerd does not respond")
    assert "containerd does not respond" in importer.check().stdout
    containerd.start()
    containerd.delete_image()
    importer.wait_until_ready()


def test_script_exits_with_0_on_sigterm(importer: Importer) -> None:
    assert importer.stop() == 0


def test_pod_with_unchanged_sources_imports_nothing(
    containerd: Containerd, image_build: ImageBuild, importer: Importer, tmp_path: Path
) -> None:
    """In the next pod, the init container builds no image, and the main container imports none."""
    importer.stop()
    assert image_build.is_up_to_date()
    with importing(containerd, image_build.archive, tmp_path / "second") as successor:
        successor.wait_until_ready()
        assert "importing" not in successor.log
