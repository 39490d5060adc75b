"""Write the key file and its metadata, each atomically."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import SecretStr

from lifecycle.domain.errors import KeyFileError
from lifecycle.domain.model import KeyMetadata
from lifecycle.keyfile.reader import METADATA_JSON, KeyFileReader, digest_of, read_file

_METADATA_MODE = 0o644


@dataclass(frozen=True, slots=True)
class KeyFileWriter(KeyFileReader):
    """A key file that may be replaced. Only `lifecycle.apply` calls these methods, which raise KeyFileError."""

    mode: int = 0o640

    def check_writable(self) -> None:
        """Check that a key can be written: create a file in its folder, and check the files to replace."""
        folder = self.path.parent
        with _key_file_errors(self.path):
            if not folder.is_dir():
                raise KeyFileError(
                    f"AUTHKEY_OUTPUT_PATH: the folder {folder} does not exist. Mount the volume that is shared with "
                    "the tailscale container there"
                )
            for path in (self.path, self.metadata_path):
                # It is unclear whether a symbolic link or its target should be replaced.
                if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
                    raise KeyFileError(
                        f"AUTHKEY_OUTPUT_PATH: {path} is not a regular file, but for example a folder or a symbolic "
                        "link. Set this to the path of a regular file, which need not exist yet"
                    )
                if path.exists() and path.stat().st_dev != folder.stat().st_dev:
                    raise KeyFileError(
                        f"AUTHKEY_OUTPUT_PATH: {path} is mounted alone and cannot be replaced. Mount the folder of the "
                        "volume, not a single file of it (subPath)"
                    )
            with _temporary(self.path, b"\n", 0o600):
                pass

    def write(self, key: SecretStr, metadata: KeyMetadata) -> None:
        """Replace the key metadata, then the key file, each atomically. No newline is added to the key."""
        content = key.get_secret_value().encode()
        self.write_metadata(replace(metadata, key_sha256=digest_of(content)))
        _replace(self.path, content, self.mode)

    def write_metadata(self, metadata: KeyMetadata) -> None:
        """Replace the key metadata atomically. The key file stays as it is."""
        _replace(self.metadata_path, METADATA_JSON.dump_json(metadata) + b"\n", _METADATA_MODE)

    def write_restart_marker(self, key_id: str | None) -> bool:
        """Write or remove the restart marker, which requests a restart of tailscale. Return True if it was changed.

        The liveness probe of the tailscale container fails while the marker is newer than tailscale's socket.

        Args:
            key_id: the id of the key in the key file; None = remove the marker.
        """
        path = self.restart_marker_path
        if key_id is None:
            with _key_file_errors(path), suppress(FileNotFoundError):
                path.unlink()
                return True
            return False
        # For the same key, the marker keeps its modification time. Otherwise tailscale would be restarted again.
        with suppress(OSError):
            if read_file(path) == key_id.encode():
                return False
        _replace(path, key_id.encode(), _METADATA_MODE)
        return True


def _replace(path: Path, content: bytes, mode: int) -> None:
    with _key_file_errors(path), _temporary(path, content, mode) as temporary:
        temporary.replace(path)
    # The file has been replaced. Syncing the folder only makes the replacement durable, so a failure is ignored.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _temporary(path: Path, content: bytes, mode: int) -> Iterator[Path]:
    """Write the content to a temporary file beside the path, and remove that file afterwards."""
    # The name is always the same, so that the next run removes the file of a run that was killed.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _write_new(temporary, content, mode)
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    # Only this user can read the file until it has its final mode. A symbolic link is not followed.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)


@contextmanager
def _key_file_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into a KeyFileError with advice."""
    try:
        yield
    except OSError as error:
        raise KeyFileError(
            f"AUTHKEY_OUTPUT_PATH: {path} could not be written ({error.strerror}). The folder must be writable "
            f"for uid {os.getuid()}, such as an emptyDir volume with the pod's fsGroup. Mount the folder, "
            "not a single file of the volume (subPath)"
        ) from error
