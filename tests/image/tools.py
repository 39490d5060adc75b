"""What the tests of the image start for real: a cluster node's folders, its containerd, its containers."""

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
"""What containerd gives a container that asks for nothing."""


def eventually(holds: Callable[[], bool], *, within_s: float, what: str, log: Callable[[], str] = str) -> float:
    """Look until something holds; how long it took, in seconds."""
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < within_s, f"not within {within_s} s: {what}\n{log()}"
        time.sleep(0.05)
    return time.monotonic() - begin


def run(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and capture what it says; its status is the caller's to judge."""
    return subprocess.run([str(word) for word in command], text=True, capture_output=True, check=False, **options)


def checked(command: Sequence[str | Path], **options: Any) -> str:
    """Run a command that must succeed; what it prints."""
    done = run(command, **options)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def render(folder: Path) -> dict[str, dict[str, Any]]:
    """What `kubectl apply -k` would send, by kind."""
    documents = yaml.safe_load_all(checked([ROOT / ".venv/bin/kubectl", "kustomize", folder]))
    return {document["kind"]: document for document in documents}


@dataclass(frozen=True)
class Archive:
    """An OCI archive on disk, read without the code under test."""

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
        """Every file of every layer by its path: kind, mode, owner, time of change, target, hash of the content."""
        found: dict[str, tuple[object, ...]] = {}
        with tarfile.open(self.path) as archive:
            for layer in self.manifest["layers"]:
                blob = archive.extractfile("blobs/" + layer["digest"].replace(":", "/"))
                with tarfile.open(fileobj=blob, mode="r:gz") as members:
                    for member in members:
                        file = members.extractfile(member) if member.isreg() else None
                        content = hashlib.sha256(file.read()).hexdigest() if file else None
                        # Some Buildahs put the kind into the mode, too.
                        about = (member.type, member.mode & 0o7777, member.uid, member.gid, member.mtime)
                        found[member.name] = (*about, member.linkname, content)
        return found

    def rewrite(self, change: Callable[[Path], object], scratch: Path) -> None:
        """Unpack it, let something be changed there, and pack it again."""
        shutil.rmtree(scratch, ignore_errors=True)
        checked(["mkdir", "-p", scratch])
        checked(["tar", "-xf", self.path, "-C", scratch])
        change(scratch)
        checked(["tar", "-cf", self.path, "-C", scratch, *sorted(part.name for part in scratch.iterdir())])


def name_as_docker_does(unpacked: Path) -> None:
    """Name an archive's image as `docker save` does: by the tag alone, and in full in containerd's own way."""
    index = json.loads((unpacked / "index.json").read_text())
    names = {"io.containerd.image.name": IMAGE, "org.opencontainers.image.ref.name": IMAGE.rpartition(":")[2]}
    index["manifests"][0]["annotations"] = names
    (unpacked / "index.json").write_text(json.dumps(index, separators=(",", ":")))


@dataclass
class Builds:
    """Runs build.sh on this machine, as the init container does on a cluster node."""

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
        """Unpack the sources, let something be changed there, and pack them again."""
        scratch = self.folder / "sources"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        checked(["tar", "-xzf", self.sources, "-C", scratch])
        change(scratch)
        self.sources = self.folder / "changed.tar.gz"
        checked(["tar", "-czf", self.sources, "-C", scratch, *sorted(part.name for part in scratch.iterdir())])


@dataclass(frozen=True)
class Image:
    """A name that containerd knows."""

    digest: str
    labels: Mapping[str, str]


class Containerd:
    """A containerd with a socket, a root and a state folder of its own."""

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
        eventually(
            lambda: run([*self.ctr, "version"]).returncode == 0,
            within_s=60,
            what=f"containerd answers; see {self.folder / 'log'}",
        )

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(timeout=60)

    @property
    def ctr(self) -> list[str]:
        return ["ctr", "--address", str(self.socket), "--namespace", "k8s.io"]

    def images(self) -> dict[str, Image]:
        """Every image that Kubernetes would see, by name."""
        lines = checked([*self.ctr, "images", "ls"]).splitlines()[1:]
        rows = [line.split() for line in lines]
        return {
            row[0]: Image(row[2], dict(label.split("=", 1) for label in row[-1].split(",") if "=" in label))
            for row in rows
        }

    def delete_image(self) -> None:
        checked([*self.ctr, "images", "rm", "--sync", IMAGE])

    def lose_snapshots(self) -> None:
        """Take away what the image is run from, layer by layer from the top; its name and its parts stay."""
        snapshots = [*self.ctr, "snapshots"]

        def lost() -> bool:
            parents = {row[0]: row[1] for row in map(str.split, checked([*snapshots, "ls"]).splitlines()[1:])}
            for leaf in set(parents) - set(parents.values()):
                # Once the top is gone, containerd collects those below it, and may be first.
                run([*snapshots, "rm", leaf])
            return not parents

        eventually(lost, within_s=60, what="all snapshots are gone")

    def unpin_image(self) -> None:
        """Take the label away, which ctr does for a label without a value."""
        checked([*self.ctr, "images", "label", IMAGE, f"{PIN}="])

    @contextmanager
    def container(
        self, name: str, *flags: str, image: str, command: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen[str]]:
        """Run a container until the block ends; nothing of it is left behind.

        Args:
            name: its own name.
            flags: of `ctr run`.
            image: a name, or with `--rootfs` among the flags a folder.
            command: instead of the image's; empty = the image's.
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
    """Run import.sh beside a containerd until the block ends."""
    importer = Importer(containerd, archive, folder)
    importer.start()
    try:
        yield importer
    finally:
        importer.stop()


class Importer:
    """Runs import.sh on this machine, as the main container does on a cluster node."""

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
        """End it as the kubelet does; its exit status."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=60)

    def ready(self) -> bool:
        """What the readiness probe says."""
        return run(["/bin/sh", BUILD / "import.sh", "check"], env=self._environment).returncode == 0

    def becomes_ready(self, *, within_s: float = 60) -> float:
        return eventually(self.ready, within_s=within_s, what="ready", log=lambda: self.said)

    def says(self, words: str, *, within_s: float = 60) -> None:
        eventually(lambda: words in self.said, within_s=within_s, what=f"it says {words!r}", log=lambda: self.said)

    @property
    def said(self) -> str:
        return self._log.read_text()
