"""Create self-signed certificates, and directories that imitate the kubelet's volumes for Secrets."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.pod.network import run


def issue(name: str) -> tuple[str, str]:
    """Create a self-signed certificate for a DNS name, and return the certificate and its key as PEM."""
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

    The kubelet does this in pkg/volume/util/atomic_writer.go of Kubernetes.

    Args:
        folder: the directory to create.
        mode: the permissions of the files, as in the volume's `defaultMode`.
    """

    def __init__(self, folder: Path, mode: int = 0o440) -> None:
        self.folder = folder
        self.mode = mode
        self._versions = 0
        folder.mkdir()

    def write(self, files: dict[str, str], *, group: int) -> None:
        """Replace all files. `group` is the id of the group that owns the files."""
        self._versions += 1
        version = self.folder / f"..{self._versions}"
        version.mkdir()
        for name, content in files.items():
            (version / name).write_text(content)
            (version / name).chmod(self.mode)
            run("chown", f"0:{group}", version / name)
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(Path("..data", name))
        new_link = self.folder / "..data_tmp"
        new_link.symlink_to(version.name)
        new_link.replace(self.folder / "..data")

    def write_certificate(self, certificate: str, key: str, *, group: int) -> None:
        """Replace all files with those of a Secret of type kubernetes.io/tls."""
        self.write({"tls.crt": certificate, "tls.key": key}, group=group)
