"""Real programs for the tests of the image: builds, containerd and containers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
IMAGE = "localhost/tailscale-lifecycle:latest"
PIN = "io.cri-containerd.pinned"

DEFAULT_CAPABILITIES = frozenset(
    {"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD"}
    | {"NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}
)
"""The default capabilities of containerd."""


def wait_until(condition: Callable[[], bool], *, within_s: float, what: str, log: Callable[[], str] = str) -> float:
    """Poll until the condition is true, and return the seconds that passed."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < within_s, f"not within {within_s} s: {what}\n{log()}"
        time.sleep(0.05)
    return time.monotonic() - begin


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output. The exit status is not checked."""
    return subprocess.run([str(word) for word in command], text=True, capture_output=True, check=False, **options)


def checked(command: Sequence[str | Path], **options: Any) -> str:
    """Run a command that must succeed, and return its output."""
    done = run(command, **options)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def render(folder: Path) -> dict[str, dict[str, Any]]:
    """Render a kustomization, by kind."""
    documents = yaml.safe_load_all(checked([ROOT / ".venv/bin/kubectl", "kustomize", folder]))
    return {document["kind"]: document for document in documents}


@dataclass(frozen=True)
class Archive:
    """An OCI archive on disk."""

    path: Path

    def _blob(self, archive: tarfile.TarFile, digest: str) -> Any:
        file = archive.extractfile("blobs/" + digest.replace(":", "/"))
        assert file is not None
        return json.load(file)

    @property
    def index(self) -> Any:
        with tarfile.open(self.path) as archive:
            file = archive.extractfile("index.json")
            assert file is not None
            return json.load(file)

    @property
    def digest(self) -> str:
        digest: str = self.index["manifests"][0]["digest"]
        return digest

    @property
    def manifest(self) -> Any:
        with tarfile.open(self.path) as archive:
            return self._blob(archive, self.digest)

    @property
    def config(self) -> Any:
        with tarfile.open(self.path) as archive:
            return self._blob(archive, self.manifest["config"]["digest"])

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.config["config"]["Labels"]
        return labels

    def files(self) -> dict[str, tuple[object, ...]]:
        """Return the type, mode, owner, modification time, link target and content hash of each file by its path."""
        found: dict[str, tuple[object, ...]] = {}
        with tarfile.open(self.path) as archive:
            for layer in self.manifest["layers"]:
                blob = archive.extractfile("blobs/" + layer["digest"].replace(":", "/"))
                with tarfile.open(fileobj=blob, mode="r:gz") as members:
                    for member in members:
                        file = members.extractfile(member) if member.isreg() else None
                        content = hashlib.sha256(file.read()).hexdigest() if file else None
                        # Some versions of Buildah include the file type in the mode.
                        metadata = (member.type, member.mode & 0o7777, member.uid, member.gid, member.mtime)
                        found[member.name] = (*metadata, member.linkname, content)
        return found

    def rewrite(self, change: Callable[[Path], object], scratch: Path) -> None:
        """Unpack the archive, change the files, and pack it again."""
        shutil.rmtree(scratch, ignore_errors=True)
        checked(["mkdir", "-p", scratch])
        checked(["tar", "-xf", self.path, "-C", scratch])
        change(scratch)
        checked(["tar", "-cf", self.path, "-C", scratch, *sorted(part.name for part in scratch.iterdir())])


def name_as_docker_does(unpacked: Path) -> None:
    """Name the image as `docker save` does: the tag in the OCI annotation, the full name in that of containerd."""
    index = json.loads((unpacked / "index.json").read_text())
    names = {"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": IMAGE.rpartition(":")[2]}
    index["manifests"][0]["annotations"] = names
    (unpacked / "index.json").write_text(json.dumps(index, separators=(",", ":")))


@dataclass
class Builds:
    """Runs build.sh as the init container does."""

    folder: Path
    sources: Path
    environment: Mapping[str, str]

    def __post_init__(self) -> None:
        self.archive = Archive(self.folder / "image.tar")
        self.termination_log = self.folder / "termination-log"
        self.termination_log.touch()

    def build(self, **variables: str) -> subprocess.CompletedProcess[str]:
        return run(["/bin/sh", BUILD / "build.sh"], env={**self.variables, **variables})

    @property
    def variables(self) -> dict[str, str]:
        return {
            **self.environment,
            "SOURCES": str(self.sources),
            "ARCHIVE": str(self.archive.path),
            "TERMINATION_LOG": str(self.termination_log),
        }

    def change_sources(self, change: Callable[[Path], object]) -> None:
        """Unpack the sources, change the files, and pack them again."""
        scratch = self.folder / "sources"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        checked(["tar", "-xzf", self.sources, "-C", scratch])
        change(scratch)
        self.sources = self.folder / "changed.tar.gz"
        checked(["tar", "-czf", self.sources, "-C", scratch, *sorted(part.name for part in scratch.iterdir())])


@dataclass(frozen=True)
class Image:
    """An image name in containerd."""

    digest: str
    labels: Mapping[str, str]


class Containerd:
    """A containerd with its own socket, root and state folder."""

    def __init__(self, folder: Path, *, socket: Path | None = None) -> None:
        self.folder = folder
        self.socket = socket or folder / "run/containerd.sock"
        self._config = folder / "config.toml"
        self._config.write_text(
            f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n[grpc]\n  address = "{self.socket}"\n'
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(["containerd", "--config", self._config], stdout=log, stderr=log)
        wait_until(
            lambda: run([*self.ctr, "version"]).returncode == 0,
            within_s=60,
            what=f"containerd responds; see {self.folder / 'log'}",
        )

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=60)

    @property
    def ctr(self) -> list[str]:
        return ["ctr", "--address", str(self.socket), "--namespace", "k8s.io"]

    def images(self) -> dict[str, Image]:
        """Return the images of the namespace k8s.io by name."""
        lines = checked([*self.ctr, "images", "ls"]).splitlines()[1:]
        rows = [line.split() for line in lines]
        return {
            row[0]: Image(row[2], dict(label.split("=", 1) for label in row[-1].split(",") if "=" in label))
            for row in rows
        }

    def delete_image(self) -> None:
        checked([*self.ctr, "images", "rm", "--sync", IMAGE])

    def lose_snapshots(self) -> None:
        """Delete the snapshots of the image, from the top layer down. The name and the content stay."""
        snapshots = [*self.ctr, "snapshots"]

        def are_lost() -> bool:
            parents = {row[0]: row[1] for row in map(str.split, checked([*snapshots, "ls"]).splitlines()[1:])}
            for leaf in set(parents) - set(parents.values()):
                # containerd also deletes the parents of a deleted snapshot, at the same time.
                run([*snapshots, "rm", leaf])
            return not parents

        wait_until(are_lost, within_s=60, what="all snapshots are gone")

    def unpin_image(self) -> None:
        """Remove the label. ctr removes a label that has no value."""
        checked([*self.ctr, "images", "label", IMAGE, f"{PIN}="])

    @contextmanager
    def container(
        self, name: str, *flags: str, image: str, command: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen[str]]:
        """Run a container during the block, and delete it afterwards.

        Args:
            name: name of the container.
            flags: flags of `ctr run`.
            image: name of an image, or a folder if the flags include `--rootfs`.
            command: replaces the command of the image, if not empty.
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
    """Runs import.sh as the main container does."""

    def __init__(
        self, containerd: Containerd, archive: Archive, folder: Path, *, path: str = os.environ["PATH"]
    ) -> None:
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
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*shell, BUILD / "import.sh"], env=self._environment, stdout=log, stderr=log
            )

    def stop(self) -> int:
        """Stop it as the kubelet does, and return the exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)

    def check(self) -> subprocess.CompletedProcess[str]:
        """Run the startup and readiness probe."""
        return run(["/bin/sh", BUILD / "import.sh", "check"], env=self._environment)

    def is_ready(self) -> bool:
        return self.check().returncode == 0

    def wait_until_ready(self) -> None:
        wait_until(self.is_ready, within_s=60, what="ready", log=lambda: self.log)

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log, within_s=60, what=f"the log contains {text!r}", log=lambda: self.log)

    @property
    def log(self) -> str:
        return self._log.read_text()
