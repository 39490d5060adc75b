"""Test that logging never blocks the program. If standard output is full or closed, lines are dropped and counted."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import closing, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

import pytest

from lifecycle.runtime.background import in_background
from lifecycle.runtime.output import LineOutput, print_text
from tests.threads import refused_threads

# The longest wait until all lines are written. It is long, because the machine can be slow.
FLUSH_S = 60.0


class Pipe:
    """A pipe with a buffer of 4096 bytes, the minimum in Linux. `writer` is a text file."""

    def __init__(self) -> None:
        self.reader, descriptor = os.pipe()
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, 4096)
        self.writer = os.fdopen(descriptor, "w", encoding="utf-8")

    def fill(self) -> int:
        """Write until the pipe is full, and return the number of bytes."""
        written = 0
        os.set_blocking(self.writer.fileno(), False)
        with suppress(BlockingIOError):
            while True:
                written += os.write(self.writer.fileno(), b"x")
        os.set_blocking(self.writer.fileno(), True)
        return written

    def read(self, size: int) -> bytes:
        """Return this many bytes, and wait for them if necessary."""
        received = b""
        while len(received) < size:
            received += os.read(self.reader, size - len(received))
        return received

    def close(self) -> None:
        """Close both ends, if a test has not closed the reader."""
        with suppress(OSError):
            os.close(self.reader)
        self.writer.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    with closing(Pipe()) as pipe:
        yield pipe


def test_lines_are_written_in_order(pipe: Pipe) -> None:
    output = LineOutput(pipe.writer)

    for number in range(100):
        output.write_line(f"line {number}")

    output.flush(FLUSH_S)
    lines = "".join(f"line {number}\n" for number in range(100)).encode()
    assert pipe.read(len(lines)) == lines
    assert output.dropped == 0


def test_full_pipe_does_not_block(pipe: Pipe) -> None:
    """A thousand lines are queued, and written when the reader continues. The other lines are dropped."""
    output = LineOutput(pipe.writer)
    filled_bytes = pipe.fill()

    for number in range(1500):
        output.write_line(f"{number:04}")
    output.flush(0.0)

    assert output.dropped == 500
    pipe.read(filled_bytes)
    assert pipe.read(5000) == "".join(f"{number:04}\n" for number in range(1000)).encode()
    assert output.dropped == 500


@pytest.mark.parametrize("kind", ["pipe without a reader", "full disk", "closed"])
def test_lines_that_cannot_be_written_are_dropped(pipe: Pipe, kind: str) -> None:
    """`closed` stands for a closed standard output, for which `sys.stdout` is None."""
    os.close(pipe.reader)
    with Path("/dev/full").open("w") as disk:
        output = LineOutput({"pipe without a reader": pipe.writer, "full disk": disk, "closed": None}[kind])
        for _ in range(3):
            output.write_line("line")
        output.flush(FLUSH_S)
    assert output.dropped == 3


def test_line_is_written_completely_to_a_non_blocking_pipe(pipe: Pipe) -> None:
    """Another process that uses the pipe can make the pipe non-blocking. The line is longer than the pipe's buffer."""
    output = LineOutput(pipe.writer)
    os.set_blocking(pipe.writer.fileno(), False)
    line = "y" * 20_000

    output.write_line(line)

    assert pipe.read(20_001) == f"{line}\n".encode()
    output.flush(FLUSH_S)
    assert output.dropped == 0


def test_text_is_written_completely_to_a_non_blocking_pipe(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", pipe.writer)
    os.set_blocking(pipe.writer.fileno(), False)
    reading = in_background(lambda: pipe.read(20_000), name="reader")

    print_text("y" * 20_000)

    assert reading.result(FLUSH_S) == b"y" * 20_000


def test_line_waits_while_the_system_refuses_a_thread(pipe: Pipe) -> None:
    output = LineOutput(pipe.writer)

    with refused_threads("log"):
        output.write_line("first")
    output.write_line("second")

    output.flush(FLUSH_S)
    assert pipe.read(13) == b"first\nsecond\n"


def test_partial_line_is_ended_before_the_next_line(tmp_path: Path, repository: Path) -> None:
    """The disk becomes full in the middle of a line, and later has space again. A file size limit simulates this."""
    program = """
        import resource, sys
        from lifecycle.runtime.output import LineOutput
        output = LineOutput(sys.stdout)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
        for _ in range(3):
            output.write_line("0123456789")
        output.flush(60)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        output.write_line("last")
        output.flush(60)
        sys.exit(output.dropped)
    """
    file = tmp_path / "log"
    with file.open("w") as disk:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program)], stdout=disk, check=False, cwd=repository
        )

    # The second line was written partially and the third not at all, so both count as dropped.
    assert done.returncode == 2
    assert file.read_text() == "0123456789\n01234\nlast\n"


@pytest.mark.parametrize(
    ("encoding", "expected"), [("ascii", "k\\xe9y \\ud800 \\udcff\n"), ("utf-8", "k\u00e9y \\ud800 \\udcff\n")]
)
def test_characters_that_cannot_be_encoded_are_escaped(tmp_path: Path, encoding: str, expected: str) -> None:
    file = tmp_path / "log"
    stream: TextIO
    with TextIOWrapper(file.open("wb"), encoding=encoding) as stream:
        output = LineOutput(stream)
        output.write_line("k\u00e9y \ud800 \udcff")
        output.flush(FLUSH_S)

    assert output.dropped == 0
    assert file.read_text(encoding=encoding) == expected
