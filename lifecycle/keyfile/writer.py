"""Write the key file and its metadata, each atomically."""

from __future__ import annotations

import os
import re
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

_OCTAL_ESCAPE = re.compile(rb"\\([0-7]{3})")

_FILE_TYPES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True, slots=True)
class KeyFileWriter(KeyFileReader):
    """A key file that may be replaced. Only `lifecycle.apply` calls these methods, which raise KeyFileError."""

    mode: int = 0o640

    def check_writable(self) -> None:
        """Check that a key can be written: create and rename a file in its folder, and check the files to replace."""
        folder = self.path.parent
        with _key_file_errors(self.path):
            if not folder.is_dir():
                raise KeyFileError(
                    f"AUTHKEY_OUTPUT_PATH: the folder {folder} does not exist. Mount the volume that is shared with "
                    "the tailscale container there"
                )
            for path in (self.path, self.metadata_path):
                _check_replaceable(path)
            with _temporary(self.path, b"\n", 0o600) as temporary:
                # The file is renamed to a name that is not the key file's, so that the key file is not replaced.
                temporary.replace(temporary.with_suffix(".check"))
                temporary.with_suffix(".check").unlink()

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


def _check_replaceable(path: Path) -> None:
    """Raise KeyFileError unless the path does not exist, or is a regular file that a rename can replace.

    A symbolic link is refused, because it is unclear whether the link or its target should be replaced.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise KeyFileError(
            f"AUTHKEY_OUTPUT_PATH: {path} is {_FILE_TYPES.get(stat.S_IFMT(mode), 'a special file')}. Set this to the "
            "path of a regular file, which need not exist yet"
        )
    if is_mount_point(path):
        raise KeyFileError(
            f"AUTHKEY_OUTPUT_PATH: {path} is a mount point and cannot be replaced. Mount the folder of the volume, "
            "not a single file of it (subPath)"
        )


def is_mount_point(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Return True if something is mounted at the path; False if the mounts cannot be read."""
    # Path.is_mount() does not detect a file that is mounted from the same file system.
    target = os.fsencode(path.parent.resolve() / path.name)
    try:
        lines = mounts.read_bytes().splitlines()
    except OSError:
        return False
    # Source: proc_pid_mountinfo(5). The fifth field is the mount point, with some characters as octal escapes.
    mount_points = (_OCTAL_ESCAPE.sub(lambda escape: bytes([int(escape[1], 8)]), line.split(b" ")[4]) for line in lines)
    return target in mount_points


def _replace(path: Path, content: bytes, mode: int) -> None:
    with _key_file_errors(path), _temporary(path, content, mode) as temporary:
        _check_replaceable(path)
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
            f"for uid {os.getuid()}, such as an emptyDir volume with the pod's fsGroup"
        ) from error
