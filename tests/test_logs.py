"""Test the format of log lines, as JSON and as text for the console. Each test runs a program that logs."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import textwrap
import unicodedata
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

PROGRAM_START = """
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
import structlog
from pydantic import SecretStr
from lifecycle.runtime.logs import configure_logs, flush_logs

log = structlog.get_logger()
"""

# Another thread writes the lines. The program waits until it has written them.
PROGRAM_END = "\nflush_logs(60)\n"


@pytest.fixture
def run(repository: Path, clean_environment: dict[str, str]) -> Run:
    """Return a function that runs a Python program with `configure_logs` and `log`."""

    def run_program(
        program: str, *, stdout: int | TextIO = subprocess.PIPE, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM_START + textwrap.dedent(program) + PROGRAM_END],
            check=False,
            stdout=stdout,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            cwd=repository,
            env=clean_environment | environment,
        )

    return run_program


def parse_lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_event_is_one_line_of_json_on_standard_output(run: Run) -> None:
    """Times are RFC 3339 in UTC, whatever the local time zone."""
    done = run(
        """
        configure_logs(console=False)
        log.info("node.deleted", node_id="7", error="first\\nsecond\\r\\x85\\u2028third", quotes='a "b" \\\\ c')
        at = datetime(2026, 3, 1, tzinfo=timezone(timedelta(hours=9)))
        log.warning("pass.failed", wait_s=1.5, at=at, path=Path("/a"), none=None, some={"a"},
                    nested={"at": (at + timedelta(seconds=0.5),)})
        """,
        TZ="Asia/Tokyo",
    )

    assert done.stdout.count("\n") == 2
    first, second = parse_lines(done.stdout)
    assert list(first) == ["timestamp", "level", "event", "node_id", "error", "quotes"]
    timestamp = first.pop("timestamp")
    assert datetime.fromisoformat(timestamp).utcoffset() == timedelta()
    assert timestamp.endswith("Z")
    assert list(first.values()) == ["info", "node.deleted", "7", "first\nsecond\r\x85\u2028third", 'a "b" \\ c']
    assert second | {"timestamp": ""} == {
        "at": "2026-02-28T15:00:00Z",
        "event": "pass.failed",
        "level": "warning",
        "none": None,
        "path": "/a",
        "nested": {"at": ["2026-02-28T15:00:00.500000Z"]},
        "some": ["a"],
        "timestamp": "",
        "wait_s": 1.5,
    }
    assert (done.returncode, done.stderr) == (0, "")


def test_secret_in_an_event_is_masked(run: Run) -> None:
    for console in (True, False):
        done = run(f"""
            configure_logs(console={console})
            log.info("x", token=SecretStr("s3cr3t"), nested=dict(token=SecretStr("s3cr3t")))
        """)

        assert "s3cr3t" not in done.stdout + done.stderr
        assert "**" in done.stdout


@pytest.mark.parametrize(
    ("options", "levels"),
    [
        pytest.param("level='debug'", ["debug", "info", "warning", "error"], id="debug"),
        pytest.param("", ["info", "warning", "error"], id="default"),
        pytest.param("level='error'", ["error"], id="error"),
    ],
)
def test_lower_levels_are_not_logged(run: Run, options: str, levels: list[str]) -> None:
    done = run(f"""
        configure_logs(console=False, {options})
        for level in ("debug", "info", "warning", "error"):
            getattr(log, level)("x")
    """)

    assert [event["level"] for event in parse_lines(done.stdout)] == levels


def test_log_can_go_to_standard_error(run: Run) -> None:
    done = run("configure_logs(console=False, to_stderr=True); log.info('x'); print('the report')")

    assert done.stdout == "the report\n"
    assert [event["event"] for event in parse_lines(done.stderr)] == ["x"]


def test_last_configuration_applies(run: Run) -> None:
    """A command can log events before it has read LOG_LEVEL from the settings, and then configures the log again."""
    done = run("""
        configure_logs(console=False)
        log.info("early")
        configure_logs(console=True, level="warning")
        log.info("not logged")
        log.warning("late")
    """)

    early, late = done.stdout.splitlines()
    assert json.loads(early)["event"] == "early"
    assert "late" in late
    assert not late.startswith("{")


def test_console_text_has_colors_only_on_a_terminal(run: Run) -> None:
    program = "configure_logs(console=True); log.info('node.deleted')"
    terminal, standard_output = pty.openpty()
    run(program, stdout=standard_output)
    on_terminal = os.read(terminal, 4096).decode()
    os.close(standard_output)
    os.close(terminal)

    in_pipe = run(program).stdout

    assert "node.deleted" in on_terminal
    assert "\x1b[" in on_terminal
    assert "node.deleted" in in_pipe
    assert "\x1b" not in in_pipe


# Half of a surrogate pair, a path that is not UTF-8, and characters beyond ASCII.
UNUSUAL_TEXTS = [r"a\ud800b", r"/a\udcff", r"k\u00e9y \u2192 \U0001f600"]


@pytest.mark.max_cases_without_full(2)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("console", [True, False])
@pytest.mark.parametrize("to_stderr", [True, False])
def test_any_character_can_be_logged(run: Run, console: bool, to_stderr: bool, encoding: str) -> None:
    """A record's comment can contain any characters."""
    done = run(
        f"configure_logs(console={console}, to_stderr={to_stderr})\n"
        + "\n".join(f"log.error('record.foreign', comment='{text}')" for text in UNUSUAL_TEXTS),
        PYTHONIOENCODING=f"{encoding}:strict",
    )

    assert done.returncode == 0, done.stderr
    lines = done.stderr if to_stderr else done.stdout
    assert lines.count("record.foreign") == len(UNUSUAL_TEXTS)
    assert (done.stdout if to_stderr else done.stderr) == ""
    if not console and encoding == "utf-8":
        assert all(event["comment"] for event in parse_lines(lines))


def test_any_character_can_be_printed(run: Run) -> None:
    """Reports are printed to standard output, and can contain any characters."""
    program = r"from lifecycle.runtime.output import print_text; print_text('a\ud800b\n')"
    done = run(program, PYTHONIOENCODING="utf-8:strict")

    assert (done.returncode, done.stdout) == (0, "a\\ud800b\n")


# Escape sequences and other characters that change what a terminal shows.
UNSAFE_TEXTS = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "a\rb", "a\nb", "a\bb", "\u202eb", "\x7f"]


def test_console_text_contains_no_terminal_escapes(run: Run) -> None:
    """Hostnames, comments and user names can contain any characters."""
    values = [form.format(text) for text in UNSAFE_TEXTS for form in ("{!r}", "[{!r}]", "dict(key={!r})")]
    done = run(
        "configure_logs(console=True)\n"
        + "\n".join(f"log.warning('record.foreign', comment={value})" for value in values)
    )

    lines = done.stdout.split("\n")
    assert len(lines) == len(values) + 1
    assert all(line.isprintable() for line in lines)


def test_json_contains_no_terminal_escapes(run: Run) -> None:
    """Terminals also interpret the control characters beyond ASCII."""
    done = run(
        "configure_logs(console=False)\n"
        + "\n".join(
            f"log.warning('record.foreign', comment={text!r})" for text in [*UNSAFE_TEXTS, "a\x85b", "a\u2028b"]
        )
    )

    controls = {character for character in done.stdout if unicodedata.category(character) in {"Cc", "Zl"}}
    assert controls == {"\n"}
    assert [event["comment"] for event in parse_lines(done.stdout)][: len(UNSAFE_TEXTS)] == UNSAFE_TEXTS


@pytest.mark.parametrize("console", [True, False])
def test_traceback_contains_no_terminal_escapes(run: Run, console: bool) -> None:
    done = run(f"""
        configure_logs(console={console})
        try:
            raise ValueError("\\x1b[2J")
        except ValueError:
            log.exception("command.crashed")
    """)

    assert "ValueError" in done.stdout
    assert "\x1b" not in done.stdout


def test_console_text_shows_values_without_python_syntax(run: Run) -> None:
    done = run("""
        configure_logs(console=True)
        log.info("x", at=datetime(2026, 3, 1, tzinfo=UTC), text="two words", items=["a", "b"])
    """)

    assert "at=2026-03-01T00:00:00Z" in done.stdout
    assert "text='two words'" in done.stdout
    assert "items=a,b" in done.stdout


def test_dropped_lines_are_counted(run: Run) -> None:
    """/dev/full refuses every write, like a full disk. The exit status is the number of dropped lines."""
    program = """
        from lifecycle.runtime.logs import dropped_lines
        configure_logs(console=False)
        log.info("x")
        log.info("y")
        flush_logs(60)
        exit(dropped_lines())
    """
    with Path("/dev/full").open("w") as disk:
        done = run(program, stdout=disk)

    assert (done.returncode, done.stderr) == (2, "")
