"""Read the key file and its metadata."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lifecycle.domain.errors import KeyFileError
from lifecycle.domain.model import KeyMetadata

_MAX_BYTES = 64 * 1024
"""Far more than a key or its metadata has."""

_ID = re.compile(r"[1-9][0-9]{0,19}")


@dataclass(frozen=True, slots=True)
class KeyFileReader:
    """The key file with its permission bits, and `<path>.id` beside it."""

    path: Path
    mode: int = 0o640

    @property
    def metadata_path(self) -> Path:
        """The path of the key metadata."""
        return self.path.with_name(self.path.name + ".id")

    @property
    def restart_marker_path(self) -> Path:
        """The path of the file that exists while a restart of the tailscale container helps."""
        return self.path.with_name(self.path.name + ".restart")

    def read_metadata(self) -> KeyMetadata | None:
        """Read the key metadata; None if there is none: no volume is mounted, or `cleanup` has not run.

        Raises:
            KeyFileError: the file is malformed, or cannot be read.
        """
        try:
            return _parse(json.loads(_read(self.metadata_path)))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise KeyFileError(f"{self.metadata_path} cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise KeyFileError(
                f"{self.metadata_path} is malformed ({type(error).__name__}). Run cleanup again to replace it"
            ) from error

    def holds(self, metadata: KeyMetadata) -> bool:
        """Return True if the key in the file is the one that the metadata describes.

        They differ if a process was killed between writing the metadata and the key.

        Raises:
            KeyFileError: the key file cannot be read.
        """
        try:
            return metadata.key_sha256 in (None, digest_of(_read(self.path)))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be read ({error.strerror})") from error


def digest_of(key: bytes) -> str:
    """Return the digest by which the metadata identifies a key."""
    return hashlib.sha256(key).hexdigest()


def _read(path: Path) -> bytes:
    """Read a regular file: opening a FIFO blocks, and a device has no end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read(_MAX_BYTES)


def _parse(values: Any) -> KeyMetadata:
    return KeyMetadata(
        pre_auth_key_id=_optional_id(values["pre_auth_key_id"]),
        kept_node_id=_optional_id(values["kept_node_id"]),
        kept_machine_key=_optional_text(values.get("kept_machine_key")),
        key_sha256=_optional_text(values.get("key_sha256")),
        key_created_at=_optional_time(values.get("key_created_at")),
    )


def _optional_id(value: object) -> str | None:
    if value is None or (isinstance(value, str) and _ID.fullmatch(value)):
        return value
    raise ValueError("an id is decimal text")


def _optional_time(value: object) -> datetime | None:
    at = None if value is None else datetime.fromisoformat(str(value))
    if at is not None and at.tzinfo is None:
        raise ValueError("an instant has a zone")
    return at


def _optional_text(value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise TypeError("not a string")
