"""Read the key file and its metadata."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from lifecycle.domain.errors import KeyFileError
from lifecycle.domain.model import KeyMetadata

# The most bytes to read from a file. A key or its metadata is much smaller.
_MAX_BYTES = 64 * 1024

# Parses and formats the metadata file, which is JSON.
METADATA_JSON = TypeAdapter(KeyMetadata)


@dataclass(frozen=True, slots=True)
class KeyFileReader:
    """The key file, and two files beside it: the key metadata (`<path>.id`) and the restart marker (`<path>.restart`).

    The key file contains the pre-auth key for the tailscale container. The metadata identifies the key and the pod's
    node. A method raises KeyFileError if a file is malformed or cannot be read.
    """

    path: Path

    @property
    def metadata_path(self) -> Path:
        """The path of the key metadata."""
        return self.path.with_name(self.path.name + ".id")

    @property
    def restart_marker_path(self) -> Path:
        """The path of the restart marker, which exists while a restart of the tailscale container is needed."""
        return self.path.with_name(self.path.name + ".restart")

    def read_metadata(self) -> KeyMetadata | None:
        """Return the key metadata; None if the file does not exist, for example before `cleanup` has run."""
        try:
            return METADATA_JSON.validate_json(read_file(self.metadata_path), strict=True)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise KeyFileError(f"{self.metadata_path} cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise KeyFileError(f"{self.metadata_path} is malformed. Run cleanup again to replace it") from error

    def contains_key_of(self, metadata: KeyMetadata) -> bool:
        """Return True if the key file exists, and has the digest in the metadata if there is one.

        The digest differs if a process was killed after it wrote the metadata, and before it wrote the key.
        """
        try:
            return metadata.key_sha256 in (None, digest_of(read_file(self.path)))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be read ({error.strerror})") from error


def digest_of(key: bytes) -> str:
    """Return the digest of a key for `KeyMetadata.key_sha256`."""
    return hashlib.sha256(key).hexdigest()


def read_file(path: Path) -> bytes:
    """Return the content of a regular file, up to 64 KiB.

    Other kinds of files raise OSError, because reading a FIFO could block, and reading a device might never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read(_MAX_BYTES)
