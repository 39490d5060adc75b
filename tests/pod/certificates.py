"""Certificates, and directories that are updated like the kubelet's Secret volumes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.pod.network import run


def issue(name: str) -> tuple[str, str]:
    """Create a self-signed certificate that is its own CA, and return it with its key."""
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder, "tls.key"), Path(folder, "tls.crt")
        run(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName=DNS:{name}"),
            *("-keyout", key, "-out", certificate),
        )
        return certificate.read_text(), key.read_text()


class MountedSecret:
    """A directory with a Secret's files, updated atomically by swapping a symbolic link.

    Source: Kubernetes, pkg/volume/util/atomic_writer.go.

    Args:
        mode: the volume's `defaultMode`.
    """

    def __init__(self, folder: Path, mode: int = 0o440) -> None:
        self.folder = folder
        self.mode = mode
        self._versions = 0
        folder.mkdir()

    def write(self, files: dict[str, str], *, owner: int) -> None:
        """Replace all files."""
        self._versions += 1
        version = self.folder / f"..{self._versions}"
        version.mkdir()
        for name, content in files.items():
            (version / name).write_text(content)
            (version / name).chmod(self.mode)
            run("chown", f"0:{owner}", version / name)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(Path("..data", name))
        swapped = self.folder / "..data_tmp"
        swapped.symlink_to(version.name)
        swapped.replace(self.folder / "..data")

    def write_certificate(self, certificate: str, key: str, *, owner: int) -> None:
        """Replace all files by those of a Secret of type kubernetes.io/tls."""
        self.write({"tls.crt": certificate, "tls.key": key}, owner=owner)
