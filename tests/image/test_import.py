"""What import.sh does to a real containerd, and what it refuses to."""

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
    eventually,
    importing,
    name_as_docker_does,
)


@pytest.fixture
def archive(builds: Builds) -> Archive:
    """The image's archive, to spoil as a test likes."""
    return builds.archive


@pytest.fixture
def importer(containerd: Containerd, archive: Archive, tmp_path: Path) -> Iterator[Importer]:
    """import.sh, running, its image imported and all done that follows an import."""
    with importing(containerd, archive, tmp_path) as importer:
        importer.becomes_ready()
        eventually(
            lambda: settled(containerd),
            within_s=60,
            what="the image is there under its own name, and Kubernetes told of it",
            log=lambda: importer.said,
        )
        yield importer


def names(images: Iterable[str]) -> list[str]:
    """Those of all images that people gave."""
    return [name for name in images if not name.startswith("sha256:")]


def settled(containerd: Containerd) -> bool:
    """True when neither import.sh nor the CRI plugin has anything left to do: both go on when it is ready already."""
    images = containerd.images()
    told = all(image.labels.get("io.cri-containerd.image") == "managed" for image in images.values())
    # Its name, and that of its configuration, which the CRI plugin gives.
    return told and len(images) == 2 and names(images) == [IMAGE]


def name_another_image(unpacked: Path) -> None:
    index = unpacked / "index.json"
    index.write_text(index.read_text().replace(IMAGE, "docker.io/library/another:latest"))


def name_nothing(unpacked: Path) -> None:
    index = json.loads((unpacked / "index.json").read_text())
    del index["manifests"][0]["annotations"]
    (unpacked / "index.json").write_bytes(as_json(index))


def name_another_image_as_docker_does(unpacked: Path) -> None:
    """Ours by the tag alone, which containerd does not go by."""
    name_as_docker_does(unpacked)
    name_another_image(unpacked)


def damage_a_layer(unpacked: Path) -> None:
    """One byte in the middle of the largest file."""
    layer = max((unpacked / "blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size)
    content = bytearray(layer.read_bytes())
    content[len(content) // 2] ^= 1
    layer.write_bytes(content)


def lose_a_layer(unpacked: Path) -> None:
    max((unpacked / "blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size).unlink()


class Unpacked:
    """An archive's parts, to change so that each digest is right again."""

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


def make_another_image(folder: Path) -> None:
    """Another image, as good as the first."""
    unpacked = Unpacked(folder)
    unpacked.config["config"]["Labels"]["org.opencontainers.image.version"] = "another"
    unpacked.save()


def put_in_a_layer_that_cannot_be_unpacked(folder: Path) -> None:
    """Every digest is right, and still it is no image: only containerd can find out."""
    unpacked = Unpacked(folder)
    # Another layer than any that is unpacked already, or containerd would take that one.
    unpacked.config["rootfs"]["diff_ids"][-1] = f"sha256:{'0' * 64}"
    unpacked.put(unpacked.manifest["layers"][-1], gzip.compress(b"no layer"))
    unpacked.save()


def test_the_image_is_there_under_its_exact_name_and_pinned(
    containerd: Containerd, archive: Archive, importer: Importer
) -> None:
    image = containerd.images()[IMAGE]
    assert image.digest == archive.digest
    assert image.labels[PIN] == "pinned"


def test_kubernetes_is_told_of_it(containerd: Containerd, importer: Importer) -> None:
    """containerd's CRI plugin marks what it shows the kubelet; all that is there is one image under one name."""
    assert containerd.images()[IMAGE].labels["io.cri-containerd.image"] == "managed"
    assert names(containerd.images()) == [IMAGE]


def test_nothing_is_ready_before_the_first_import(containerd: Containerd, archive: Archive, tmp_path: Path) -> None:
    assert not Importer(containerd, archive, tmp_path).ready()


def test_deleted_behind_its_back_it_comes_back(containerd: Containerd, importer: Importer) -> None:
    containerd.delete_image()
    assert not importer.ready()
    importer.becomes_ready()
    assert containerd.images()[IMAGE].labels[PIN] == "pinned"


def test_an_image_that_cannot_be_run_is_unpacked_again(containerd: Containerd, importer: Importer) -> None:
    """Its name, its pin and each of its parts are there, and still no pod could start from it."""
    importer.stop()
    containerd.lose_snapshots()
    assert not importer.ready()
    importer.start()
    importer.becomes_ready()


def test_an_archive_that_docker_saved_gets_the_whole_name(
    containerd: Containerd, archive: Archive, tmp_path: Path
) -> None:
    archive.rewrite(name_as_docker_does, archive.path.with_name("scratch"))
    with importing(containerd, archive, tmp_path) as importer:
        importer.becomes_ready()
    assert containerd.images()[IMAGE].digest == archive.digest


def test_the_shell_of_the_image_that_runs_it_is_enough(
    containerd: Containerd, archive: Archive, tmp_path: Path
) -> None:
    """Alpine's is BusyBox'; its tools stand in for all others."""
    tools = tmp_path / "tools"
    tools.mkdir()
    checked(["busybox", "--install", "-s", tools])
    importer = Importer(containerd, archive, tmp_path, path=f"{tools}:{Path(checked(['which', 'ctr']).strip()).parent}")
    importer.start(["busybox", "sh"])
    try:
        importer.becomes_ready()
        containerd.unpin_image()
        becomes_pinned(containerd)
    finally:
        importer.stop()


def test_unpinned_it_is_pinned_again(containerd: Containerd, importer: Importer) -> None:
    containerd.unpin_image()
    assert not importer.ready()
    importer.becomes_ready()
    assert containerd.images()[IMAGE].labels[PIN] == "pinned"


def test_the_name_given_to_another_image_is_taken_back(
    containerd: Containerd, archive: Archive, importer: Importer
) -> None:
    """As after somebody's `ctr images import`."""
    other = Archive(archive.path.with_name("other.tar"))
    shutil.copy(archive.path, other.path)
    other.rewrite(make_another_image, archive.path.with_name("scratch"))
    checked([*containerd.ctr, "images", "import", other.path])
    assert not importer.ready()
    importer.becomes_ready()
    assert containerd.images()[IMAGE].digest == archive.digest != other.digest


def test_a_new_archive_replaces_the_image(
    containerd: Containerd, archive: Archive, importer: Importer, builds: Builds, tmp_path: Path
) -> None:
    """The next pod of the DaemonSet finds the old image in place."""
    importer.stop()
    before = containerd.images()[IMAGE].digest
    builds.change_sources(lambda sources: (sources / "LICENSE").write_text("another\n"))
    assert builds.build().returncode == 0
    second = tmp_path / "second"
    second.mkdir()
    with importing(containerd, builds.archive, second) as successor:
        successor.becomes_ready()
        eventually(
            lambda: names(containerd.images()) == [IMAGE],
            within_s=60,
            what="only the image's own name",
            log=lambda: successor.said,
        )
    image = containerd.images()[IMAGE]
    assert image.digest == builds.archive.digest != before
    assert image.labels[PIN] == "pinned"


def test_the_name_of_the_import_does_not_stay_for_ever(containerd: Containerd, importer: Importer) -> None:
    """An import that was cut off left it; the next look finds all well, and takes it away."""
    checked([*containerd.ctr, "images", "tag", IMAGE, "localhost/tailscale-lifecycle:next"])
    eventually(
        lambda: names(containerd.images()) == [IMAGE],
        within_s=60,
        what="only the image's own name",
        log=lambda: importer.said,
    )


def test_a_container_that_starts_again_looks_at_the_archive_again(
    containerd: Containerd, archive: Archive, importer: Importer
) -> None:
    """Its folder outlives it; what it wanted before is not what this archive holds."""
    importer.stop()
    archive.rewrite(make_another_image, archive.path.with_name("scratch"))
    importer.start()
    eventually(
        lambda: containerd.images()[IMAGE].digest == archive.digest,
        within_s=60,
        what="the new image",
        log=lambda: importer.said,
    )


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(None, "cut short", id="cut-short"),
        pytest.param(name_another_image, 'holds "docker.io/library/another:latest"', id="another-name"),
        pytest.param(
            name_another_image_as_docker_does, 'holds "docker.io/library/another:latest"', id="another-name-by-docker"
        ),
        pytest.param(name_nothing, 'holds ""', id="no-name"),
        pytest.param(damage_a_layer, "is damaged", id="damaged"),
        pytest.param(lose_a_layer, "is damaged", id="incomplete"),
    ],
)
def test_an_archive_that_is_not_sound_is_refused_and_the_image_stays(
    containerd: Containerd, archive: Archive, importer: Importer, tmp_path: Path, spoil: object, reason: str
) -> None:
    importer.stop()
    before = containerd.images()
    if callable(spoil):
        archive.rewrite(spoil, archive.path.with_name("scratch"))
    else:
        os.truncate(archive.path, archive.path.stat().st_size * 2 // 3)
    second = tmp_path / "second"
    second.mkdir()
    with importing(containerd, archive, second) as successor:
        successor.says(reason)
        assert not successor.ready()
        assert containerd.images() == before
        # It is the image that pods run, so it is guarded all the same.
        containerd.unpin_image()
        becomes_pinned(containerd)


def becomes_pinned(containerd: Containerd) -> None:
    eventually(lambda: containerd.images()[IMAGE].labels.get(PIN) == "pinned", within_s=60, what="it is pinned again")


def test_an_image_that_cannot_be_unpacked_does_not_take_the_name(
    containerd: Containerd, archive: Archive, importer: Importer, tmp_path: Path
) -> None:
    """Not even for a moment: what was there is there under the same name, as old as it was."""
    importer.stop()
    before = as_listed(containerd)
    archive.rewrite(put_in_a_layer_that_cannot_be_unpacked, archive.path.with_name("scratch"))
    second = tmp_path / "second"
    second.mkdir()
    with importing(containerd, archive, second) as successor:
        successor.says("the import failed")
        eventually(lambda: names(containerd.images()) == [IMAGE], within_s=60, what="only the image's own name")
        assert not successor.ready()
        assert as_listed(containerd) == before
        containerd.unpin_image()
        becomes_pinned(containerd)


def test_an_import_that_fails_is_tried_less_and_less_often(
    containerd: Containerd, archive: Archive, tmp_path: Path
) -> None:
    """Nobody mends such an archive, and each try reads and writes all of it."""
    archive.rewrite(put_in_a_layer_that_cannot_be_unpacked, archive.path.with_name("scratch"))
    with importing(containerd, archive, tmp_path) as importer:
        importer.says("trying again after 4 looks")
        # The look that failed, and two that did not try.
        assert importer.said.partition("trying again after 4 looks")[0].count("looking again") == 3
        # Without an image before it there is none, rather than one that cannot run.
        assert IMAGE not in containerd.images()


def as_listed(containerd: Containerd) -> str:
    """The image as containerd keeps it, with the time at which the name was last given."""
    return checked([*containerd.ctr, "images", "ls", f"name=={IMAGE}"])


def test_a_refused_archive_gives_no_image_at_all(containerd: Containerd, archive: Archive, tmp_path: Path) -> None:
    archive.rewrite(name_another_image, archive.path.with_name("scratch"))
    with importing(containerd, archive, tmp_path) as importer:
        importer.says("refused")
        assert containerd.images() == {}


def test_it_outlives_containerd(containerd: Containerd, importer: Importer) -> None:
    containerd.stop()
    assert not importer.ready()
    importer.says("containerd does not answer")
    containerd.start()
    containerd.delete_image()
    importer.becomes_ready()


def test_it_ends_when_asked_to(importer: Importer) -> None:
    assert importer.stop() == 0


def test_with_nothing_new_a_pod_imports_nothing(
    containerd: Containerd, builds: Builds, importer: Importer, tmp_path: Path
) -> None:
    """Both containers, one after the other, with nothing there that could build or pull."""
    importer.stop()
    second = tmp_path / "second"
    second.mkdir()
    assert builds.build(BUILDER="no-such-builder").returncode == 0
    with importing(containerd, builds.archive, second) as successor:
        successor.becomes_ready()
        assert "importing" not in successor.said
