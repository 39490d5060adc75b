"""The key file is whole or absent, whatever happens while it is written."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from lifecycle.domain.errors import KeyFileError
from lifecycle.domain.model import KeyMetadata
from lifecycle.keyfile.writer import KeyFileWriter

KEY = SecretStr("hskey-auth-abcdefghijkl-" + "Ab_-" * 16)
OLD = SecretStr("0123456789abcdef" * 3)
NOTE = KeyMetadata(pre_auth_key_id="7")

# Where the key goes before it is whole.
TEMPORARY = ".authkey.tmp"

NOBODY = 65534


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def key_file(tmp_path: Path) -> KeyFileWriter:
    return KeyFileWriter(tmp_path / "authkey")


@pytest.fixture
def old_key(key_file: KeyFileWriter) -> KeyFileWriter:
    """A key file from an earlier start of the pod."""
    key_file.write(OLD, KeyMetadata(pre_auth_key_id="3"))
    return key_file


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def disk_with_room_for(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes: a write ends half-way, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def folder_of_nobody() -> Iterator[Path]:
    """A folder, and while the test runs a user for whom permission bits count; root ignores them."""
    folder = Path(tempfile.mkdtemp())
    if os.geteuid() != 0:
        yield folder
        folder.chmod(0o700)
        shutil.rmtree(folder)
        return
    os.chown(folder, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        if not os.access(folder, os.W_OK, effective_ids=True):
            pytest.skip("folders for temporary files cannot be entered by everybody; set TMPDIR to one that can")
        yield folder
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


class TestWrite:
    """A key that could be written."""

    def test_the_file_has_exactly_the_key(self, key_file: KeyFileWriter) -> None:
        """No line break: what reads it takes every byte for the key."""
        key_file.write(KEY, NOTE)

        assert key_file.path.read_bytes() == KEY.get_secret_value().encode()

    def test_a_longer_key_in_the_file_leaves_nothing_behind(self, key_file: KeyFileWriter) -> None:
        key_file.write(KEY, NOTE)

        key_file.write(OLD, NOTE)

        assert key_file.path.read_bytes() == OLD.get_secret_value().encode()

    def test_nothing_else_is_left_in_the_folder(self, key_file: KeyFileWriter) -> None:
        key_file.check_writable()
        key_file.write(KEY, NOTE)

        assert names_in(key_file.path.parent) == ["authkey", "authkey.id"]

    @pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o777])
    @pytest.mark.parametrize("mode", [0o640, 0o600, 0o400, 0o644, 0o440])
    def test_the_modes_are_what_was_set_whatever_the_umask(self, tmp_path: Path, mode: int, mask: int) -> None:
        """tailscale may run as another user of the pod's group."""
        key_file = KeyFileWriter(tmp_path / "authkey", mode)

        with umask(mask):
            key_file.check_writable()
            key_file.write(KEY, NOTE)

        assert mode_of(key_file.path) == mode
        assert mode_of(key_file.metadata_path) == 0o644

    def test_the_mode_is_0640_unless_set(self, key_file: KeyFileWriter) -> None:
        key_file.write(KEY, NOTE)

        assert mode_of(key_file.path) == 0o640

    def test_a_mode_that_was_wider_is_narrowed(self, old_key: KeyFileWriter) -> None:
        old_key.path.chmod(0o666)

        old_key.write(KEY, NOTE)

        assert mode_of(old_key.path) == 0o640

    def test_the_old_file_stays_whole_for_who_has_it_open(self, old_key: KeyFileWriter) -> None:
        """It is replaced, not overwritten: a reader gets one key or the other, never a mixture."""
        with old_key.path.open("rb") as reader:
            old_key.write(KEY, NOTE)

            assert reader.read() == OLD.get_secret_value().encode()

    def test_the_new_key_stands_beside_its_note(self, key_file: KeyFileWriter) -> None:
        assert key_file.metadata_path == key_file.path.with_name("authkey.id")

        key_file.write(KEY, KeyMetadata(pre_auth_key_id="12", kept_node_id="4"))

        digest = hashlib.sha256(KEY.get_secret_value().encode()).hexdigest()
        note = {"pre_auth_key_id": "12", "kept_node_id": "4", "kept_machine_key": None, "key_sha256": digest}
        assert json.loads(key_file.metadata_path.read_bytes()) == note
        assert KEY.get_secret_value() not in key_file.metadata_path.read_text()

    @pytest.mark.parametrize("name", ["authkey", ".hidden", "key.txt", "ключ", "a b", "x" * 200])
    def test_any_name_will_do(self, tmp_path: Path, name: str) -> None:
        key_file = KeyFileWriter(tmp_path / name)

        key_file.check_writable()
        key_file.write(KEY, NOTE)

        assert names_in(tmp_path) == sorted([name, f"{name}.id"])


class TestLeftovers:
    """What an earlier run, or somebody else, left in the folder."""

    @pytest.mark.parametrize("mode", [0o600, 0o666, 0o000])
    def test_a_temporary_file_of_a_killed_run_goes(self, key_file: KeyFileWriter, mode: int) -> None:
        leftover = key_file.path.with_name(TEMPORARY)
        leftover.write_bytes(b"half a ke")
        leftover.chmod(mode)

        key_file.write(KEY, NOTE)

        assert key_file.path.read_bytes() == KEY.get_secret_value().encode()
        assert mode_of(key_file.path) == 0o640
        assert names_in(key_file.path.parent) == ["authkey", "authkey.id"]

    def test_a_link_at_the_temporary_name_is_not_followed(self, key_file: KeyFileWriter, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(b"precious")
        key_file.path.with_name(TEMPORARY).symlink_to(elsewhere)

        key_file.check_writable()
        key_file.path.with_name(TEMPORARY).symlink_to(elsewhere)
        key_file.write(KEY, NOTE)

        assert elsewhere.read_bytes() == b"precious"
        assert not key_file.path.is_symlink()
        assert key_file.path.read_bytes() == KEY.get_secret_value().encode()

    def test_a_hard_link_at_the_temporary_name_is_not_written_through(
        self, key_file: KeyFileWriter, tmp_path: Path
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(b"precious")
        os.link(elsewhere, key_file.path.with_name(TEMPORARY))

        key_file.write(KEY, NOTE)

        assert elsewhere.read_bytes() == b"precious"

    def test_a_link_in_place_of_the_key_is_replaced_itself(self, key_file: KeyFileWriter, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(b"precious")
        key_file.path.symlink_to(elsewhere)

        key_file.write(KEY, NOTE)

        assert elsewhere.read_bytes() == b"precious"
        assert not key_file.path.is_symlink()

    def test_a_folder_at_the_temporary_name_is_an_error_beforehand(self, key_file: KeyFileWriter) -> None:
        key_file.path.with_name(TEMPORARY).mkdir()

        with pytest.raises(KeyFileError, match="AUTHKEY_OUTPUT_PATH"):
            key_file.check_writable()


class TestCannotBeWritten:
    """A key that could not be written: the old one stays, and nothing of the new one does."""

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        key_file = KeyFileWriter(tmp_path / "volume" / "authkey")

        with pytest.raises(KeyFileError, match="AUTHKEY_OUTPUT_PATH"):
            key_file.check_writable()
        with pytest.raises(KeyFileError, match="No such file"):
            key_file.write(KEY, NOTE)

        assert names_in(tmp_path) == []

    def test_a_file_where_the_folder_should_be(self, tmp_path: Path) -> None:
        (tmp_path / "volume").write_bytes(b"")

        with pytest.raises(KeyFileError, match="AUTHKEY_OUTPUT_PATH"):
            KeyFileWriter(tmp_path / "volume" / "authkey").check_writable()

    def test_a_folder_in_place_of_the_key(self, tmp_path: Path) -> None:
        with pytest.raises(KeyFileError, match="AUTHKEY_OUTPUT_PATH"):
            KeyFileWriter(tmp_path).check_writable()

    def test_a_name_that_no_file_can_have(self, tmp_path: Path) -> None:
        for path in (tmp_path / ("x" * 300), tmp_path / ("x" * 300) / "authkey"):
            with pytest.raises(KeyFileError, match="AUTHKEY_OUTPUT_PATH"):
                KeyFileWriter(path).check_writable()

    def test_a_read_only_folder(self, folder_of_nobody: Path) -> None:
        key_file = KeyFileWriter(folder_of_nobody / "authkey")
        key_file.write(OLD, NOTE)
        folder_of_nobody.chmod(0o500)

        with pytest.raises(KeyFileError, match=rf"Permission denied.*uid {os.getuid()}"):
            key_file.check_writable()
        with pytest.raises(KeyFileError):
            key_file.write(KEY, NOTE)

        folder_of_nobody.chmod(0o700)
        assert key_file.path.read_bytes() == OLD.get_secret_value().encode()
        assert names_in(folder_of_nobody) == ["authkey", "authkey.id"]

    def test_a_folder_that_may_not_be_entered(self, folder_of_nobody: Path) -> None:
        key_file = KeyFileWriter(folder_of_nobody / "volume" / "authkey")
        key_file.path.parent.mkdir()
        folder_of_nobody.chmod(0o000)

        with pytest.raises(KeyFileError, match="Permission denied"):
            key_file.check_writable()

        folder_of_nobody.chmod(0o700)

    def test_a_folder_that_may_be_written_but_not_read(self, folder_of_nobody: Path) -> None:
        """The key is in place: that the folder itself cannot be opened does not make it unwritten."""
        key_file = KeyFileWriter(folder_of_nobody / "authkey")
        folder_of_nobody.chmod(0o300)

        key_file.check_writable()
        key_file.write(KEY, NOTE)

        assert key_file.path.read_bytes() == KEY.get_secret_value().encode()

    def test_a_full_disk_is_noticed_before_a_key_is_made(self, old_key: KeyFileWriter) -> None:
        with disk_with_room_for(0), pytest.raises(KeyFileError, match="AUTHKEY_OUTPUT_PATH"):
            old_key.check_writable()

        assert old_key.path.read_bytes() == OLD.get_secret_value().encode()
        assert names_in(old_key.path.parent) == ["authkey", "authkey.id"]

    @pytest.mark.parametrize("room", [0, 1, 40, 87])
    def test_a_disk_that_fills_up_half_way_leaves_the_old_key(self, old_key: KeyFileWriter, room: int) -> None:
        """The key has 88 bytes, the note fewer."""
        with disk_with_room_for(room), pytest.raises(KeyFileError):
            old_key.write(KEY, NOTE)

        assert old_key.path.read_bytes() == OLD.get_secret_value().encode()
        assert names_in(old_key.path.parent) == ["authkey", "authkey.id"]

    def test_a_disk_that_fills_up_half_way_leaves_no_file_where_there_was_none(self, key_file: KeyFileWriter) -> None:
        with disk_with_room_for(87), pytest.raises(KeyFileError):
            key_file.write(KEY, NOTE)

        assert not key_file.path.exists()
        assert TEMPORARY not in names_in(key_file.path.parent)

    def test_a_folder_in_place_of_the_note_leaves_the_old_key(self, old_key: KeyFileWriter) -> None:
        """A key whose note is another key's would have `dns-watch` look for the wrong node."""
        old_key.metadata_path.unlink()
        old_key.metadata_path.mkdir()

        with pytest.raises(KeyFileError):
            old_key.write(KEY, NOTE)

        assert old_key.path.read_bytes() == OLD.get_secret_value().encode()

    @pytest.mark.parametrize("room", [0, 40])
    def test_no_error_shows_the_key(self, key_file: KeyFileWriter, room: int) -> None:
        with disk_with_room_for(room), pytest.raises(KeyFileError) as raised:
            key_file.write(KEY, NOTE)

        assert KEY.get_secret_value() not in str(raised.value)

    def test_looking_writes_nothing_that_stays(self, key_file: KeyFileWriter) -> None:
        key_file.check_writable()

        assert names_in(key_file.path.parent) == []


class TestReadNote:
    """What `dns-watch` learns from the file beside the key."""

    @pytest.mark.parametrize(
        "note",
        [
            pytest.param(KeyMetadata("7"), id="a-key"),
            pytest.param(KeyMetadata("7", "4"), id="a-key-and-a-kept-node"),
            pytest.param(KeyMetadata(None, "4"), id="a-kept-node"),
            pytest.param(KeyMetadata("18446744073709551615"), id="the-largest-id"),
        ],
    )
    def test_what_was_written_is_read(self, key_file: KeyFileWriter, note: KeyMetadata) -> None:
        key_file.write_metadata(note)

        assert key_file.read_metadata() == note

    def test_whether_the_key_is_the_noted_one(self, key_file: KeyFileWriter) -> None:
        """A process that is killed after the note and before the key leaves the key of before."""
        key_file.write(KEY, NOTE)
        note = key_file.read_metadata()

        assert note is not None
        assert key_file.holds(note)
        key_file.path.write_text("hskey-auth-of-the-start-before")
        assert not key_file.holds(note)
        key_file.path.unlink()
        assert not key_file.holds(note)

    def test_a_note_of_an_older_version_is_believed(self, key_file: KeyFileWriter) -> None:
        key_file.write(KEY, NOTE)
        key_file.metadata_path.write_text('{"pre_auth_key_id": "7", "kept_node_id": null}')

        note = key_file.read_metadata()
        assert note == KeyMetadata("7")
        assert key_file.holds(note)

    def test_no_file_is_no_note(self, key_file: KeyFileWriter) -> None:
        assert key_file.read_metadata() is None

    def test_no_volume_is_no_note(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")

        assert KeyFileWriter(tmp_path / "volume" / "authkey").read_metadata() is None
        assert KeyFileWriter(tmp_path / "file" / "authkey").read_metadata() is None

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b'{"pre_auth_key_id": "7"', id="half"),
            pytest.param(b'{"pre_auth_key_id": "7"}', id="half-of-the-keys"),
            pytest.param(b'{"pre_auth_key_id": 7, "kept_node_id": null}', id="a-number"),
            pytest.param(b'{"pre_auth_key_id": "", "kept_node_id": null}', id="an-empty-id"),
            pytest.param(b'{"pre_auth_key_id": "x7", "kept_node_id": null}', id="no-number"),
            pytest.param(b'{"pre_auth_key_id": "-7", "kept_node_id": null}', id="negative"),
            pytest.param(b'{"pre_auth_key_id": true, "kept_node_id": null}', id="true"),
            pytest.param(b'["7", null]', id="a-list"),
            pytest.param(b"7", id="a-bare-number"),
            pytest.param(b"null", id="null"),
            pytest.param(b'"pre_auth_key_id kept_node_id"', id="a-text"),
            pytest.param(b"\xff\xfe", id="no-text"),
        ],
    )
    def test_a_note_that_makes_no_sense_is_not_no_note(self, key_file: KeyFileWriter, content: bytes) -> None:
        key_file.metadata_path.write_bytes(content)

        with pytest.raises(KeyFileError, match=r"authkey\.id"):
            key_file.read_metadata()

    def test_a_note_that_cannot_be_read_is_not_no_note(self, folder_of_nobody: Path) -> None:
        key_file = KeyFileWriter(folder_of_nobody / "authkey")
        key_file.write(KEY, NOTE)
        key_file.metadata_path.chmod(0o000)

        with pytest.raises(KeyFileError, match="PermissionError"):
            key_file.read_metadata()

    @given(content=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
    def test_no_content_is_a_crash_or_a_made_up_note(self, content: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            key_file = KeyFileWriter(Path(folder) / "authkey")
            key_file.metadata_path.write_bytes(content)

            with suppress(KeyFileError):
                note = key_file.read_metadata()
                assert note is not None
                assert {"pre_auth_key_id": note.pre_auth_key_id, "kept_node_id": note.kept_node_id}.items() <= (
                    json.loads(content).items()
                )


# Of very different lengths: a mixture of two is neither.
KEYS = [f"hskey-auth-{number:012d}-{chr(ord('A') + number) * (40 + 997 * number)}" for number in range(12)]

# For each line on standard input, `{"folder": …, "step": …}`, a child of its own: without a step it writes
# keys for ever; with one it writes the last key and kills itself before that step of its work.
WRITER = """
    import itertools, json, os, signal, sys
    from pathlib import Path
    from pydantic import SecretStr
    from lifecycle.domain.model import KeyMetadata
    from lifecycle.keyfile import writer
    from lifecycle.keyfile.writer import KeyFileWriter

    def write(key_file, number):
        key_file.check_writable()
        key_file.write(SecretStr(KEYS[number]), KeyMetadata(pre_auth_key_id=str(number + 1)))

    def write_for_ever(key_file):
        print(os.getpid(), flush=True)
        for turn in itertools.count():
            write(key_file, turn % len(KEYS))
            # In one piece: it may be killed here too.
            os.write(1, b"written\\n")

    def write_until(key_file, step):
        steps = 0

        def trace(frame, event, argument):
            nonlocal steps
            if frame.f_code.co_filename != writer.__file__:
                return None
            frame.f_trace_opcodes = True
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        write(key_file, len(KEYS) - 1)

    os.umask(0)
    KEYS = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        task = json.loads(line)
        child = os.fork()
        if not child:
            key_file = KeyFileWriter(Path(task["folder"]) / "authkey", 0o640)
            write_until(key_file, task["step"]) if task["step"] else write_for_ever(key_file)
            os._exit(0)
        print("killed" if os.WIFSIGNALED(os.waitpid(child, 0)[1]) else "ended", flush=True)
"""


class Writer:
    """A process that has others write keys, to be killed while they do."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._say(KEYS)

    def start(self, folder: Path, *, step: int | None = None) -> None:
        self._say({"folder": str(folder), "step": step})

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip()

    def _say(self, value: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()


@pytest.fixture
def writer(repository: Path, clean_environment: dict[str, str]) -> Iterator[Writer]:
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=repository,
        env=clean_environment,
    ) as process:
        yield Writer(process)
        process.kill()


@pytest.fixture
def quick_key_file() -> Iterator[KeyFileWriter]:
    """A key file in memory where there is room for it: a thousand writes wait for no disk."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield KeyFileWriter(Path(folder) / "authkey")


def assert_whole(key_file: KeyFileWriter) -> str:
    """Look at what a kill left; the key that is in the file."""
    folder = key_file.path.parent
    assert set(names_in(folder)) <= {"authkey", "authkey.id", TEMPORARY, ".authkey.id.tmp"}
    leftover = folder / TEMPORARY
    assert not leftover.exists() or mode_of(leftover) & ~0o640 == 0
    # Raises when it is there and not whole.
    note = key_file.read_metadata()
    if not key_file.path.exists():
        return ""
    assert note is not None
    assert mode_of(key_file.path) == 0o640
    key = key_file.path.read_text()
    assert key in KEYS
    return key


class TestKilled:
    """kill -9 leaves the file absent or whole, and the next run is not in its way."""

    @pytest.mark.parametrize("old", [None, KEYS[3]], ids=["no-key-before", "a-key-before"])
    def test_before_each_step(self, writer: Writer, quick_key_file: KeyFileWriter, old: str | None) -> None:
        """Killed once before every instruction of our own that writes the key."""
        key_file = quick_key_file
        seen = set()
        for step in range(1, 10_000):
            for path in key_file.path.parent.iterdir():
                path.unlink()
            if old is not None:
                key_file.write(SecretStr(old), NOTE)

            writer.start(key_file.path.parent, step=step)
            outcome = writer.line()

            key = assert_whole(key_file)
            assert key in {old or "", KEYS[-1]}
            seen.add(key)
            if outcome == "ended":
                break
        else:
            pytest.fail("it never comes to an end")
        assert seen == {old or "", KEYS[-1]}
        assert step > 100

    def test_at_random_instants(self, writer: Writer, quick_key_file: KeyFileWriter) -> None:
        """Killed between and within instructions and system calls, over what earlier kills left."""
        key_file = quick_key_file
        instants = random.Random(20260301)
        for _ in range(80):
            writer.start(key_file.path.parent)
            pid = int(writer.line())
            for _ in range(instants.randrange(4)):
                assert writer.line() == "written"
            for _ in range(instants.randrange(30_000)):
                pass
            os.kill(pid, signal.SIGKILL)
            while (line := writer.line()) == "written":
                pass

            assert line == "killed"
            assert_whole(key_file)

        key_file.write(KEY, NOTE)
        assert key_file.path.read_text() == KEY.get_secret_value()
        assert TEMPORARY not in names_in(key_file.path.parent)
