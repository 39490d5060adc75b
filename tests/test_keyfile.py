"""Test that the key file is complete or absent, whatever fails while it is written.

The key metadata, a second file that describes the key, is tested in the same way.
"""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from lifecycle.domain.errors import KeyFileError
from lifecycle.domain.model import KeyMetadata
from lifecycle.keyfile.writer import KeyFileWriter
from lifecycle.runtime.background import in_background
from tests.builders import NOW
from tests.process.cluster import IN_NEW_MOUNT_NAMESPACE, require_mount_namespace

KEY_TEXT = "hskey-auth-abcdefghijkl-" + "Ab_-" * 16
OLD_TEXT = "0123456789abcdef" * 3
KEY, OLD_KEY = SecretStr(KEY_TEXT), SecretStr(OLD_TEXT)
METADATA = KeyMetadata(pre_auth_key_id="7")

# The file to which the key is written before it replaces the key file.
TEMPORARY = ".authkey.tmp"

# The user id of `nobody`.
UNPRIVILEGED_UID = 65534


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFileWriter:
    return KeyFileWriter(tmp_path / "authkey")


@pytest.fixture
def old_key_file(key_file: KeyFileWriter) -> KeyFileWriter:
    """A key file from an earlier start of the pod."""
    key_file.write(OLD_KEY, KeyMetadata(pre_auth_key_id="3"))
    return key_file


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def max_file_size(size: int) -> Iterator[None]:
    """Limit the size of files, so that a write fails half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def unprivileged_folder() -> Iterator[Path]:
    """Return a folder, and run the test as an unprivileged user, because root ignores permission bits."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() != 0:
        yield folder
        folder.chmod(0o700)
        shutil.rmtree(folder)
        return
    os.chown(folder, UNPRIVILEGED_UID, UNPRIVILEGED_UID)
    os.seteuid(UNPRIVILEGED_UID)
    try:
        if not os.access(folder, os.W_OK, effective_ids=True):
            pytest.skip("the folder for temporary files is private; set TMPDIR to a folder that every user can enter")
        yield folder
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


class TestWrite:
    """Tests in which a key is written."""

    @pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
    @pytest.mark.parametrize("mode", [0o640, 0o600, 0o400, 0o644, 0o440])
    def test_modes_do_not_depend_on_the_umask_or_an_existing_file(self, tmp_path: Path, mode: int, mask: int) -> None:
        """A tailscale container that runs as another user may need a mode such as 0644 to read the key."""
        key_file = KeyFileWriter(tmp_path / "authkey", mode)
        key_file.path.touch(0o666)

        with umask(mask):
            key_file.check_writable()
            key_file.write(KEY, METADATA)

        assert mode_of(key_file.path) == mode

    def test_each_file_is_synced_before_it_is_renamed(
        self, key_file: KeyFileWriter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise, the key file could be empty after a power failure."""
        synced: list[Path] = []
        monkeypatch.setattr(
            os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        )

        key_file.write(KEY, METADATA)

        folder = key_file.path.parent.resolve()
        assert synced == [folder / ".authkey.id.tmp", folder, folder / ".authkey.tmp", folder]
        assert mode_of(key_file.metadata_path) == 0o644

    @pytest.mark.parametrize("name", ["authkey", ".hidden", "key.txt", "ключ", "a b", "x" * 200])
    def test_folder_contains_only_key_and_metadata(self, tmp_path: Path, name: str) -> None:
        """The key file can have any name."""
        key_file = KeyFileWriter(tmp_path / name)

        key_file.check_writable()
        key_file.write(KEY, METADATA)

        assert names_in(tmp_path) == sorted([name, f"{name}.id"])

    def test_key_is_written_to_a_folder_that_is_not_readable(self, unprivileged_folder: Path) -> None:
        """Such a folder cannot be opened for fsync."""
        key_file = KeyFileWriter(unprivileged_folder / "authkey")
        unprivileged_folder.chmod(0o300)

        key_file.check_writable()
        key_file.write(KEY, METADATA)

        assert key_file.path.read_text() == KEY_TEXT


class TestLeftovers:
    """An earlier run or another program left files in the folder."""

    @pytest.mark.parametrize("mode", [0o600, 0o666, 0o000])
    def test_temporary_file_of_a_killed_run_is_replaced(self, key_file: KeyFileWriter, mode: int) -> None:
        leftover = key_file.path.with_name(TEMPORARY)
        leftover.write_bytes(b"half a ke")
        leftover.chmod(mode)

        key_file.write(KEY, METADATA)

        assert key_file.path.read_text() == KEY_TEXT
        assert mode_of(key_file.path) == 0o640
        assert names_in(key_file.path.parent) == ["authkey", "authkey.id"]

    @pytest.mark.parametrize("link", [os.symlink, os.link])
    def test_link_at_the_temporary_name_is_not_followed(
        self, key_file: KeyFileWriter, tmp_path: Path, link: Callable[[Path, Path], None]
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(b"precious")

        for write in (key_file.check_writable, lambda: key_file.write(KEY, METADATA)):
            link(elsewhere, key_file.path.with_name(TEMPORARY))
            write()

        assert elsewhere.read_bytes() == b"precious"
        assert not key_file.path.is_symlink()
        assert key_file.path.read_text() == KEY_TEXT

    def test_folder_at_the_temporary_name_is_detected_by_check_writable(self, key_file: KeyFileWriter) -> None:
        key_file.path.with_name(TEMPORARY).mkdir()

        with pytest.raises(KeyFileError, match="AUTHKEY_OUTPUT_PATH"):
            key_file.check_writable()


class TestCannotBeWritten:
    """Tests in which a key cannot be written. The old key stays, and no part of the new key is left."""

    def test_missing_folder_is_an_error(self, tmp_path: Path) -> None:
        key_file = KeyFileWriter(tmp_path / "volume" / "authkey")

        with pytest.raises(KeyFileError, match="AUTHKEY_OUTPUT_PATH"):
            key_file.check_writable()
        with pytest.raises(KeyFileError, match="No such file"):
            key_file.write(KEY, METADATA)

        assert names_in(tmp_path) == []

    @pytest.mark.parametrize(
        "path",
        [
            pytest.param("file/authkey", id="file-instead-of-a-folder"),
            pytest.param("x" * 300, id="file-name-too-long"),
            pytest.param("x" * 300 + "/authkey", id="folder-name-too-long"),
        ],
    )
    def test_impossible_path_is_detected_by_check_writable(self, tmp_path: Path, path: str) -> None:
        (tmp_path / "file").touch()

        with pytest.raises(KeyFileError, match="AUTHKEY_OUTPUT_PATH"):
            KeyFileWriter(tmp_path / path).check_writable()

    def test_read_only_folder_is_an_error(self, unprivileged_folder: Path) -> None:
        key_file = KeyFileWriter(unprivileged_folder / "authkey")
        key_file.write(OLD_KEY, METADATA)
        unprivileged_folder.chmod(0o500)

        with pytest.raises(KeyFileError, match=rf"Permission denied.*uid {os.getuid()}"):
            key_file.check_writable()
        with pytest.raises(KeyFileError):
            key_file.write(KEY, METADATA)

        unprivileged_folder.chmod(0o700)
        assert key_file.path.read_text() == OLD_TEXT
        assert names_in(unprivileged_folder) == ["authkey", "authkey.id"]

    def test_folder_without_permission_to_enter_is_an_error(self, unprivileged_folder: Path) -> None:
        key_file = KeyFileWriter(unprivileged_folder / "volume" / "authkey")
        key_file.path.parent.mkdir()
        unprivileged_folder.chmod(0o000)

        with pytest.raises(KeyFileError, match="Permission denied"):
            key_file.check_writable()

        unprivileged_folder.chmod(0o700)

    def test_full_disk_is_detected_by_check_writable(self, old_key_file: KeyFileWriter) -> None:
        with max_file_size(0), pytest.raises(KeyFileError, match="AUTHKEY_OUTPUT_PATH"):
            old_key_file.check_writable()

        assert old_key_file.path.read_text() == OLD_TEXT
        assert names_in(old_key_file.path.parent) == ["authkey", "authkey.id"]

    @pytest.mark.parametrize("size", [0, 1, 40, 87])
    def test_old_key_stays_if_the_disk_becomes_full(self, old_key_file: KeyFileWriter, size: int) -> None:
        """The key has 88 bytes, more than the disk has space for."""
        with max_file_size(size), pytest.raises(KeyFileError) as raised:
            old_key_file.write(KEY, METADATA)

        assert old_key_file.path.read_text() == OLD_TEXT
        assert names_in(old_key_file.path.parent) == ["authkey", "authkey.id"]
        assert KEY_TEXT not in str(raised.value)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_device(path: Path) -> None:
    """Create a device that works like /dev/null."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root with CAP_MKNOD can create a device")


def make_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(b"precious")
    path.symlink_to(target)


def make_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("missing"))


SPECIAL_FILES = [make_folder, make_fifo, make_device, make_link, make_dangling_link]


class TestSpecialFiles:
    """Files that are not regular are neither replaced nor read."""

    @pytest.mark.parametrize("make", SPECIAL_FILES)
    @pytest.mark.parametrize("name", ["authkey", "authkey.id"])
    def test_special_file_is_not_replaced(
        self, key_file: KeyFileWriter, make: Callable[[Path], None], name: str
    ) -> None:
        path = key_file.path.with_name(name)
        make(path)
        before = path.lstat()

        with pytest.raises(KeyFileError, match="AUTHKEY_OUTPUT_PATH"):
            key_file.check_writable()

        assert path.lstat() == before
        assert make is not make_link or path.read_bytes() == b"precious"
        assert TEMPORARY not in names_in(path.parent)

    def test_symbolic_link_to_the_folder_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "volume").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "volume")
        key_file = KeyFileWriter(tmp_path / "link" / "authkey")

        key_file.check_writable()
        key_file.write(KEY, METADATA)

        assert (tmp_path / "volume" / "authkey").read_text() == KEY_TEXT

    @pytest.mark.parametrize("make", SPECIAL_FILES)
    def test_special_file_is_not_read(self, key_file: KeyFileWriter, make: Callable[[Path], None]) -> None:
        """Opening a FIFO without a writer would block."""
        for path in (key_file.path, key_file.metadata_path):
            make(path)

        metadata = in_background(key_file.read_metadata, name="metadata")
        key = in_background(lambda: key_file.contains_key_of(KeyMetadata("7", key_sha256="0")), name="key")

        for future in (metadata, key):
            with pytest.raises(KeyFileError):
                future.result(10)

    def test_large_file_is_not_read_completely(self, key_file: KeyFileWriter) -> None:
        with key_file.metadata_path.open("wb") as file:
            file.truncate(1 << 40)

        with pytest.raises(KeyFileError):
            key_file.read_metadata()


class TestRestartMarker:
    """The restart marker, a file that makes the liveness probe of the tailscale container fail."""

    def test_marker_is_written_and_removed(self, key_file: KeyFileWriter) -> None:
        """The argument is the id of the new key, or None to remove the marker. True means that the file was changed."""
        assert not key_file.write_restart_marker(None)
        assert key_file.write_restart_marker("8")
        assert key_file.restart_marker_path.read_text() == "8"
        assert key_file.write_restart_marker(None)
        assert not key_file.restart_marker_path.exists()

    def test_marker_is_replaced_only_for_another_key(self, key_file: KeyFileWriter) -> None:
        """A newer modification time would make the probe fail again, so tailscale would be restarted again."""
        key_file.write_restart_marker("8")
        inode = key_file.restart_marker_path.stat().st_ino
        assert not key_file.write_restart_marker("8")
        assert key_file.restart_marker_path.stat().st_ino == inode
        assert key_file.write_restart_marker("9")
        assert key_file.restart_marker_path.read_text() == "9"

    def test_marker_that_cannot_be_written_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(KeyFileError, match=r"authkey\.restart"):
            KeyFileWriter(tmp_path / "volume" / "authkey").write_restart_marker("8")


class TestReadMetadata:
    """Tests of reading the key metadata, as dns-watch does."""

    @pytest.mark.parametrize(
        "metadata",
        [
            pytest.param(KeyMetadata("7", "4"), id="key-and-node"),
            pytest.param(KeyMetadata(None, "4"), id="node"),
            pytest.param(KeyMetadata("7", "4", machine_key="mkey:00"), id="machine-key"),
            pytest.param(KeyMetadata("7", key_created_at=NOW), id="creation-time"),
            pytest.param(KeyMetadata("18446744073709551615"), id="largest-id"),
        ],
    )
    def test_metadata_is_read_as_written(self, key_file: KeyFileWriter, metadata: KeyMetadata) -> None:
        key_file.write_metadata(metadata)

        assert key_file.read_metadata() == metadata

    def test_key_that_the_metadata_does_not_describe_is_detected(self, key_file: KeyFileWriter) -> None:
        """A process that is killed between writing the metadata and the key leaves the earlier key."""
        key_file.write(KEY, METADATA)
        metadata = key_file.read_metadata()

        assert metadata is not None
        assert key_file.contains_key_of(metadata)
        key_file.path.write_text(OLD_TEXT)
        assert not key_file.contains_key_of(metadata)
        key_file.path.unlink()
        assert not key_file.contains_key_of(metadata)

    def test_metadata_without_a_digest_matches_every_key(self, key_file: KeyFileWriter) -> None:
        """Without a digest, nothing shows that the key is another one."""
        key_file.write(KEY, METADATA)
        key_file.metadata_path.write_text('{"pre_auth_key_id": "7", "node_id": null}')

        metadata = key_file.read_metadata()
        assert metadata == KeyMetadata("7")
        assert key_file.contains_key_of(metadata)

    @pytest.mark.parametrize("path", ["authkey", "missing/authkey", "file/authkey"])
    def test_missing_metadata_is_none(self, tmp_path: Path, path: str) -> None:
        (tmp_path / "file").touch()

        assert KeyFileWriter(tmp_path / path).read_metadata() is None

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b'{"pre_auth_key_id": "7"', id="incomplete"),
            pytest.param(b'{"node_id": "4"}', id="missing-field"),
            pytest.param(b'{"pre_auth_key_id": 7, "node_id": null}', id="number"),
            pytest.param(b'{"pre_auth_key_id": "", "node_id": null}', id="empty-id"),
            pytest.param(b'{"pre_auth_key_id": "-7", "node_id": null}', id="negative"),
            pytest.param(
                b'{"pre_auth_key_id": "7", "node_id": null, "key_created_at": "2026-03-01T12:00:00"}', id="no-zone"
            ),
            pytest.param(b'{"pre_auth_key_id": "7", "node_id": null, "key_created_at": 7}', id="time-as-number"),
            pytest.param(b'["7", null]', id="list"),
            pytest.param(b'"pre_auth_key_id node_id"', id="string"),
            pytest.param(b"\xff\xfe", id="not-UTF-8"),
        ],
    )
    def test_malformed_metadata_is_an_error(self, key_file: KeyFileWriter, content: bytes) -> None:
        key_file.metadata_path.write_bytes(content)

        with pytest.raises(KeyFileError, match=r"authkey\.id"):
            key_file.read_metadata()

    def test_unreadable_metadata_is_an_error(self, unprivileged_folder: Path) -> None:
        key_file = KeyFileWriter(unprivileged_folder / "authkey")
        key_file.write(KEY, METADATA)
        key_file.metadata_path.chmod(0o000)

        with pytest.raises(KeyFileError, match=r"authkey\.id.*Permission denied"):
            key_file.read_metadata()


# This program mounts a file of another file system over a file of the volume, as Kubernetes does for a volumeMount with
# subPath.
CHECK_MOUNTED_FILE = """
    import subprocess, sys
    from pathlib import Path
    from lifecycle.domain.errors import KeyFileError
    from lifecycle.keyfile.writer import KeyFileWriter

    path = Path(sys.argv[1]) / sys.argv[2]
    path.write_text("old")
    other = path.with_name("other")
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", other], check=True)
    source = other / "source"
    source.write_text("mounted")
    subprocess.run(["mount", "--bind", source, path], check=True)
    try:
        KeyFileWriter(Path(sys.argv[1]) / "authkey").check_writable()
    except KeyFileError as error:
        print(error)
"""


@pytest.mark.parametrize("name", ["authkey", "authkey.id"])
def test_check_writable_refuses_a_mounted_file(
    tmp_path: Path, repository: Path, clean_environment: dict[str, str], name: str
) -> None:
    """A file that Kubernetes has mounted by subPath cannot be replaced."""
    require_mount_namespace()
    program = [sys.executable, "-c", textwrap.dedent(CHECK_MOUNTED_FILE), str(tmp_path), name]
    done = subprocess.run(
        [*IN_NEW_MOUNT_NAMESPACE, *program],
        cwd=repository,
        env=clean_environment,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "subPath" in done.stdout
