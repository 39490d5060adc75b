"""Helpers for tests of the image: run build.sh, import.sh and containerd, and read image archives."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.real.programs import BackgroundProcess, eventually

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
IMAGE = "localhost/tailscale-lifecycle:latest"
PIN = "io.cri-containerd.pinned"
"""The label with which containerd tells the kubelet not to delete an image."""

ACCEPT_OLD_MIRRORS = '--aptopt=Acquire::Check-Valid-Until "false"'
"""An option of mmdebstrap: apt uses a Debian mirror even if the mirror is some weeks old."""

DEFAULT_CAPABILITIES = frozenset(
    {"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD"}
    | {"NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}
)
"""The default capabilities of containerd."""


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output. The exit status is not checked."""
    return subprocess.run([str(word) for word in command], text=True, capture_output=True, check=False, **options)


def run_checked(command: Sequence[str | Path], **options: Any) -> str:
    """Run a command that must succeed, and return its output."""
    done = run(command, **options)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def require_commands(*commands: str) -> None:
    """Skip the test unless it runs as root on Linux and all commands are installed."""
    missing = [command for command in commands if shutil.which(command) is None]
    if sys.platform != "linux" or os.geteuid() != 0 or missing:
        pytest.skip(f"needs root on Linux and {', '.join(missing or commands)}: as root, scripts/bootstrap --system")


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file in a layer of an image.

    Attributes:
        type: the type of the entry in the tar archive, such as `tarfile.REGTYPE`.
        link_target: "" if the file is not a link.
        content_hash: None if the file is not a regular file.
    """

    type: bytes
    mode: int
    owner: tuple[int, int]
    modified_at: float
    link_target: str
    content_hash: str | None


@dataclass(frozen=True)
class Archive:
    """An OCI archive (a tar file with an image) on disk."""

    path: Path

    def _json(self, name: str) -> Any:
        with tarfile.open(self.path) as archive:
            file = archive.extractfile(name)
            assert file is not None
            return json.load(file)

    @property
    def index(self) -> Any:
        return self._json("index.json")

    @property
    def digest(self) -> str:
        digest: str = self.index["manifests"][0]["digest"]
        return digest

    @property
    def manifest(self) -> Any:
        return self._json(blob_path(self.digest))

    @property
    def config(self) -> Any:
        return self._json(blob_path(self.manifest["config"]["digest"]))

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.config["config"]["Labels"]
        return labels

    @property
    def size(self) -> int:
        """The size of the compressed layers in bytes."""
        return sum(layer["size"] for layer in self.manifest["layers"])

    def files(self) -> dict[str, ImageFile]:
        """Return the files in all layers, by path."""
        files: dict[str, ImageFile] = {}
        with tarfile.open(self.path) as archive:
            for layer in self.manifest["layers"]:
                blob = archive.extractfile(blob_path(layer["digest"]))
                with tarfile.open(fileobj=blob, mode="r:gz") as members:
                    for member in members:
                        content = members.extractfile(member) if member.isreg() else None
                        files[member.name] = ImageFile(
                            member.type,
                            # Some versions of Buildah include the file type in the mode.
                            member.mode & 0o7777,
                            (member.uid, member.gid),
                            member.mtime,
                            member.linkname,
                            hashlib.sha256(content.read()).hexdigest() if content else None,
                        )
        return files

    def rewrite(self, change: Callable[[Path], object]) -> None:
        """Unpack the archive, change the files, and pack it again."""
        change_archive(self.path, self.path, change)


def blob_path(digest: str) -> str:
    """Return the path of a blob in an OCI archive."""
    return "blobs/" + digest.replace(":", "/")


def change_archive(source: Path, target: Path, change: Callable[[Path], object]) -> None:
    """Unpack an archive, call a function that changes the files in the folder, and pack them as the target."""
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        folder = Path(name)
        run_checked(["tar", "-xf", source, "-C", folder])
        change(folder)
        run_checked(
            ["tar", "--auto-compress", "-cf", target, "-C", folder, *sorted(path.name for path in folder.iterdir())]
        )


def name_like_docker_save(unpacked: Path) -> None:
    """Name the image as `docker save` does: OCI's annotation has only the tag, and containerd's has the full name."""
    index = json.loads((unpacked / "index.json").read_text())
    names = {"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": IMAGE.rpartition(":")[2]}
    index["manifests"][0]["annotations"] = names
    (unpacked / "index.json").write_text(json.dumps(index, separators=(",", ":")))


@dataclass
class ImageBuild:
    """Runs build.sh as the init container of the DaemonSet does.

    Attributes:
        folder: the folder of the archive and the termination log.
        sources: the packed sources.
        environment: the environment of build.sh and Buildah, without SOURCES, ARCHIVE and TERMINATION_LOG.
    """

    folder: Path
    sources: Path
    environment: Mapping[str, str]

    def __post_init__(self) -> None:
        self.archive = Archive(self.folder / "image.tar")
        self.termination_log = self.folder / "termination-log"
        self.termination_log.touch()

    def run(self, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run build.sh with these variables in addition to `self.variables`."""
        return run(["/bin/sh", BUILD / "build.sh"], env={**self.variables, **variables})

    def run_checked(self, **variables: str) -> None:
        """Run build.sh, which must succeed."""
        done = self.run(**variables)
        assert done.returncode == 0, done.stderr

    def is_up_to_date(self, **variables: str) -> bool:
        """Run build.sh with a builder that does not exist, so that it fails if the image has to be built."""
        done = self.run(BUILDER="no-such-builder", **variables)
        assert done.returncode == 0 or "no-such-builder" in done.stderr, done.stderr
        return done.returncode == 0

    @property
    def variables(self) -> dict[str, str]:
        """The environment of build.sh: `environment`, and the paths that build.sh reads and writes."""
        return {
            **self.environment,
            "SOURCES": str(self.sources),
            "ARCHIVE": str(self.archive.path),
            "TERMINATION_LOG": str(self.termination_log),
        }

    def change_sources(self, change: Callable[[Path], object]) -> None:
        """Unpack the sources, change the files, and pack them again."""
        changed = self.folder / "changed.tar.gz"
        change_archive(self.sources, changed, change)
        self.sources = changed


@dataclass(frozen=True)
class Image:
    """An image in containerd."""

    digest: str
    labels: Mapping[str, str]


class Containerd:
    """A containerd that has its own socket and folders.

    Args:
        folder: where containerd writes all its files.
        socket: the path of the socket. By default, the socket is in the folder.
    """

    def __init__(self, folder: Path, *, socket: Path | None = None) -> None:
        self.folder = folder
        self.socket = socket or folder / "run/containerd.sock"
        self._config = folder / "config.toml"
        self._config.write_text(
            f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n[grpc]\n  address = "{self.socket}"\n'
        )
        self._process: BackgroundProcess | None = None

    def start(self) -> None:
        self._process = BackgroundProcess(
            ["containerd", "--config", self._config],
            log=self.folder / "log",
            environment=os.environ,
            folder=self.folder,
        )
        eventually(
            lambda: run([*self.ctr, "version"]).returncode == 0, "containerd responds", details=self._process.output
        )

    def stop(self) -> None:
        assert self._process is not None
        self._process.stop()

    @property
    def ctr(self) -> list[str]:
        """The first words of each `ctr` command for this containerd."""
        return ["ctr", "--address", str(self.socket), "--namespace", "k8s.io"]

    def images(self) -> dict[str, Image]:
        """Return the images of the namespace k8s.io by name."""
        lines = run_checked([*self.ctr, "images", "ls"]).splitlines()[1:]
        rows = [line.split() for line in lines]
        return {
            row[0]: Image(row[2], dict(label.split("=", 1) for label in row[-1].split(",") if "=" in label))
            for row in rows
        }

    def delete_image(self) -> None:
        """Delete IMAGE, and the content that only this image needs."""
        run_checked([*self.ctr, "images", "rm", "--sync", IMAGE])

    def delete_snapshots(self) -> None:
        """Delete all snapshots, from the top layer down. The names and the content of images are kept."""
        snapshots = [*self.ctr, "snapshots"]

        def are_deleted() -> bool:
            parents = {row[0]: row[1] for row in map(str.split, run_checked([*snapshots, "ls"]).splitlines()[1:])}
            for leaf in set(parents) - set(parents.values()):
                # This fails if containerd itself has deleted the snapshot since it was listed.
                run([*snapshots, "rm", leaf])
            return not parents

        eventually(are_deleted, "all snapshots are deleted")

    def unpin_image(self) -> None:
        """Remove the label that pins IMAGE."""
        # ctr removes a label that has no value.
        run_checked([*self.ctr, "images", "label", IMAGE, f"{PIN}="])

    @contextmanager
    def container(
        self, name: str, *flags: str, image: str, command: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen[str]]:
        """Run a container during the block, and delete it afterwards.

        Args:
            name: the name of the container.
            flags: flags of `ctr run`.
            image: the name of an image, or a folder if the flags include `--rootfs`.
            command: the command to run instead of the command of the image, if not empty.

        Yields:
            The process of `ctr run`, which ends with the exit status of the container.
        """
        words = [*self.ctr, "run", "--rm", "--net-host", *flags, image, name, *command]
        process = subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            yield process
        finally:
            if process.poll() is None:
                run([*self.ctr, "task", "kill", "--signal", "SIGKILL", name])
            process.communicate(timeout=60)


@contextmanager
def importing(containerd: Containerd, archive: Archive, folder: Path) -> Iterator[Importer]:
    """Run import.sh during the block."""
    importer = Importer(containerd, archive, folder)
    importer.start()
    try:
        yield importer
    finally:
        importer.stop()


class Importer:
    """Runs import.sh as the main container of the DaemonSet does.

    Args:
        folder: where the script writes its state and its log. The folder is created if it is missing.
        path: the value of PATH for the script.
    """

    def __init__(
        self, containerd: Containerd, archive: Archive, folder: Path, *, path: str = os.environ["PATH"]
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._log = folder / "import.log"
        self._state = folder / "state"
        self._state.mkdir(exist_ok=True)
        self._environment = {
            **os.environ,
            "PATH": path,
            "ARCHIVE": str(archive.path),
            "CONTAINERD_ADDRESS": str(containerd.socket),
            "CHECK_INTERVAL": "1",
            "STATE": str(self._state),
            "TERMINATION_LOG": str(folder / "termination-log"),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, shell: Sequence[str] = ("/bin/sh",)) -> None:
        """Start the script with this shell."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*shell, BUILD / "import.sh"], env=self._environment, stdout=log, stderr=log
            )

    def stop(self) -> int:
        """Stop the script as the kubelet does, and return its exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)

    def check(self) -> subprocess.CompletedProcess[str]:
        """Run the script as the startup and readiness probes do."""
        return run(["/bin/sh", BUILD / "import.sh", "check"], env=self._environment)

    def is_ready(self) -> bool:
        return self.check().returncode == 0

    def wait_until_ready(self) -> None:
        eventually(self.is_ready, "the probe succeeds", details=lambda: self.log)

    def wait_for_log(self, text: str) -> None:
        eventually(lambda: text in self.log, f"the log contains {text!r}", details=lambda: self.log)

    @property
    def log(self) -> str:
        """The output of the script."""
        return self._log.read_text()
