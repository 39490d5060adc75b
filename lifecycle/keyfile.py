"""Write the key so that it is whole or absent, and beside it whose key it is."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import SecretStr

from lifecycle.domain.errors import KeyFileError

ID_FILE_MODE = 0o644

_ID = re.compile(r"[1-9][0-9]{0,19}")


@dataclass(frozen=True, slots=True)
class KeyMetadata:
    """What the file beside the key says: which node of ours is this pod's.

    Attributes:
        pre_auth_key_id: the key that was written; decimal text.
        kept_node_id: the node that was this pod's when it was seen last, or is to be under NODE_POLICY=keep;
            decimal text.
        key_sha256: of the key that was written after the note; None when that is not known.
    """

    pre_auth_key_id: str | None
    kept_node_id: str | None = None
    key_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class KeyFile:
    """The file that the tailscale container reads, and `<path>.id` beside it.

    Attributes:
        path: where the key goes; its folder has to exist.
        mode: permission bits of the key file.
    """

    path: Path
    mode: int = 0o640

    @property
    def metadata_path(self) -> Path:
        """Where the note about the key stands."""
        return self.path.with_name(self.path.name + ".id")

    def check_writable(self) -> None:
        """Find out, before a key is made, whether it could be written.

        Raises:
            KeyFileError: the folder is missing, not a folder, full or not writable.
        """
        folder = self.path.parent
        try:
            if not folder.is_dir():
                raise KeyFileError(
                    f"AUTHKEY_OUTPUT_PATH: the folder {folder} does not exist; mount the volume shared with "
                    "the tailscale container there"
                )
            if self.path.is_dir():
                raise KeyFileError(f"AUTHKEY_OUTPUT_PATH: {self.path} is a folder; give the path of a file in it")
            with self._temporary(self.path, b"\n", 0o600):
                pass
        except OSError as error:
            raise _write_failed(self.path, error) from error

    def write(self, key: SecretStr, note: KeyMetadata) -> None:
        """Replace the note, then the key, each in one step; the key is exactly as given.

        Raises:
            KeyFileError: nothing was replaced, or only the note was.
        """
        self.write_metadata(replace(note, key_sha256=_sha256(key.get_secret_value().encode())))
        try:
            self._replace(self.path, key.get_secret_value().encode(), self.mode)
        except OSError as error:
            raise _write_failed(self.path, error) from error

    def write_metadata(self, note: KeyMetadata) -> None:
        """Replace the note alone, in one step.

        Raises:
            KeyFileError: it was not replaced.
        """
        text = json.dumps(asdict(note))
        try:
            self._replace(self.metadata_path, text.encode() + b"\n", ID_FILE_MODE)
        except OSError as error:
            raise _write_failed(self.metadata_path, error) from error

    def read_metadata(self) -> KeyMetadata | None:
        """The note beside the key.

        Returns:
            None when there is none: no volume, or `cleanup` has not run.

        Raises:
            KeyFileError: it is there and makes no sense, or cannot be read.
        """
        try:
            values = json.loads(self.metadata_path.read_bytes())
            return KeyMetadata(
                _optional_id(values["pre_auth_key_id"]),
                _optional_id(values["kept_node_id"]),
                values.get("key_sha256"),
            )
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise KeyFileError(
                f"{self.metadata_path} cannot be read ({type(error).__name__}); run cleanup again to replace it"
            ) from error

    def holds(self, note: KeyMetadata) -> bool:
        """Whether the key in the file is the one that the note is about: who is killed between the two leaves another.

        Raises:
            KeyFileError: the file cannot be read.
        """
        try:
            return note.key_sha256 in (None, _sha256(self.path.read_bytes()))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be read ({error.strerror})") from error

    def _replace(self, path: Path, content: bytes, mode: int) -> None:
        with self._temporary(path, content, mode) as temporary:
            temporary.replace(path)
        # The key is in place by now, and whole; a folder that cannot be opened or synced does not change that.
        with suppress(OSError):
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    @staticmethod
    @contextmanager
    def _temporary(path: Path, content: bytes, mode: int) -> Iterator[Path]:
        """The content in a file beside the path, which does not outlive the block under that name."""
        # One fixed name: what a killed run left there goes with the next one.
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            _write_new(temporary, content, mode)
            yield temporary
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    # Nobody else may read it until it has its mode, and no link is followed.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sha256(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


def _optional_id(value: object) -> str | None:
    if value is None or (isinstance(value, str) and _ID.fullmatch(value)):
        return value
    raise ValueError("an id is decimal text")


def _write_failed(path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(
        f"AUTHKEY_OUTPUT_PATH: {path} could not be written ({error.strerror}); the folder must be writable "
        f"for uid {os.getuid()}: an emptyDir with the pod's fsGroup is"
    )
