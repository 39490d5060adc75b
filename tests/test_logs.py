"""Log lines, which a separate process writes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import textwrap
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

HEAD = """
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
import structlog
from pydantic import SecretStr
from lifecycle.runtime.logs import configure_logs, flush_logs

log = structlog.get_logger()
"""

# What every command does at its end; a line is written from another thread.
FLUSH = "\nflush_logs(60)\n"


@pytest.fixture
def run(repository: Path, clean_environment: dict[str, str]) -> Run:
    """Run a Python program with `configure_logs` and `log`."""

    def start(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", HEAD + textwrap.dedent(program) + FLUSH],
            check=False,
            capture_output=True,
            encoding="utf-8",
            cwd=repository,
            env=clean_environment | environment,
        )

    return start


def events_of(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_an_event_is_one_line_of_json_on_standard_output(run: Run) -> None:
    done = run("""
        configure_logs(console=False)
        log.info("node.deleted", node_id="7", reason="it was left by an earlier pod")
        log.warning("pass.failed", wait_s=1.5)
    """)

    first, second = events_of(done.stdout)
    assert first | {"timestamp": ""} == {
        "event": "node.deleted",
        "level": "info",
        "node_id": "7",
        "reason": "it was left by an earlier pod",
        "timestamp": "",
    }
    assert (second["event"], second["level"], second["wait_s"]) == ("pass.failed", "warning", 1.5)
    assert (done.returncode, done.stderr) == (0, "")


def test_time_is_rfc_3339_in_utc(run: Run) -> None:
    done = run("configure_logs(console=False); log.info('x')", TZ="Asia/Tokyo")

    at = datetime.fromisoformat(events_of(done.stdout)[0]["timestamp"])
    assert at.utcoffset() == datetime.now(UTC).utcoffset()
    assert events_of(done.stdout)[0]["timestamp"].endswith("Z")


def test_event_is_always_one_line(run: Run) -> None:
    done = run("""
        configure_logs(console=False)
        log.info("x", error="first\\nsecond\\r\\x85\\u2028third", quotes='a "b" \\\\ c')
    """)

    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["error"] == "first\nsecond\r\x85\u2028third"
    assert json.loads(done.stdout)["quotes"] == 'a "b" \\ c'


def test_values_of_every_kind_are_logged(run: Run) -> None:
    done = run("""
        configure_logs(console=False)
        at = datetime(2026, 3, 1, tzinfo=UTC)
        log.info("x", at=at.astimezone(timezone(timedelta(hours=9))), path=Path("/a"), none=None, some={"a"},
                 nested={"at": (at + timedelta(seconds=0.5),)})
    """)

    assert events_of(done.stdout)[0] | {"timestamp": ""} == {
        "at": "2026-03-01T00:00:00Z",
        "event": "x",
        "level": "info",
        "none": None,
        "path": "/a",
        "nested": {"at": ["2026-03-01T00:00:00.500000Z"]},
        "some": ["a"],
        "timestamp": "",
    }


def test_secret_in_an_event_is_masked(run: Run) -> None:
    for console in (True, False):
        done = run(f"""
            configure_logs(console={console})
            log.info("x", token=SecretStr("s3cr3t"), nested=dict(token=SecretStr("s3cr3t")))
        """)

        assert "s3cr3t" not in done.stdout + done.stderr
        assert "**" in done.stdout


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", ["debug", "info", "warning", "error"]),
        ("info", ["info", "warning", "error"]),
        ("warning", ["warning", "error"]),
        ("error", ["error"]),
    ],
)
def test_lower_levels_are_not_logged(run: Run, level: str, shown: list[str]) -> None:
    done = run(f"""
        configure_logs(console=False, level={level!r})
        for level in ("debug", "info", "warning", "error"):
            getattr(log, level)("x")
    """)

    assert [event["level"] for event in events_of(done.stdout)] == shown


def test_default_level_is_info(run: Run) -> None:
    done = run("configure_logs(console=False); log.debug('no'); log.info('yes')")

    assert [event["event"] for event in events_of(done.stdout)] == ["yes"]


def test_log_can_go_to_standard_error(run: Run) -> None:
    done = run("configure_logs(console=False, to_stderr=True); log.info('x'); print('the report')")

    assert done.stdout == "the report\n"
    assert [event["event"] for event in events_of(done.stderr)] == ["x"]


def test_last_configuration_applies(run: Run) -> None:
    """The settings come after the first events."""
    done = run("""
        configure_logs(console=False)
        log.info("early")
        configure_logs(console=True, level="warning")
        log.info("unseen")
        log.warning("late")
    """)

    early, late = done.stdout.splitlines()
    assert json.loads(early)["event"] == "early"
    assert "late" in late
    assert not late.startswith("{")


def test_console_text_has_no_colors_in_a_pipe(run: Run) -> None:
    done = run("configure_logs(console=True); log.info('node.deleted', node_id='7')")

    assert "\x1b" not in done.stdout
    assert "node.deleted" in done.stdout
    assert "node_id=7" in done.stdout


def test_console_text_has_colors_on_a_terminal(repository: Path, clean_environment: dict[str, str]) -> None:
    ours, its = pty.openpty()
    program = HEAD + "configure_logs(console=True); log.info('node.deleted')" + FLUSH

    done = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=its, cwd=repository, env=clean_environment
    )
    seen = os.read(ours, 4096).decode()
    os.close(its)
    os.close(ours)

    assert done.returncode == 0
    assert "\x1b[" in seen
    assert "node.deleted" in seen


# Half a surrogate pair, a path that is not UTF-8, and characters beyond ASCII.
ODD = [r"a\ud800b", r"/a\udcff", r"k\u00e9y \u2192 \U0001f600"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("console", [True, False])
@pytest.mark.parametrize("to_stderr", [True, False])
def test_any_character_can_be_logged(run: Run, console: bool, to_stderr: bool, encoding: str) -> None:
    """A record's comment can contain any characters."""
    done = run(
        f"configure_logs(console={console}, to_stderr={to_stderr})\n"
        + "\n".join(f"log.error('record.foreign', comment='{text}')" for text in ODD),
        PYTHONIOENCODING=f"{encoding}:strict",
    )

    assert done.returncode == 0, done.stderr
    lines = done.stderr if to_stderr else done.stdout
    assert lines.count("record.foreign") == len(ODD)
    assert (done.stdout if to_stderr else done.stderr) == ""
    if not console and encoding == "utf-8":
        assert all(event["comment"] for event in events_of(lines))


def test_any_character_can_be_reported(run: Run) -> None:
    done = run(r"configure_logs(console=True, to_stderr=True); print('a\ud800b')", PYTHONIOENCODING="utf-8:strict")

    assert (done.returncode, done.stdout) == (0, "a\\ud800b\n")


ESCAPES = ["\x1b[2J", "\x1b]0;title\x07", "\x9b31m", "a\rb", "a\nb", "a\bb", "\u202eb", "\x7f"]


@pytest.mark.parametrize("value", ["{!r}", "[{!r}]", "dict(key={!r})"])
def test_console_text_contains_no_terminal_escapes(run: Run, value: str) -> None:
    """Hostnames, comments and user names can contain any characters."""
    done = run(
        "configure_logs(console=True)\n"
        + "\n".join(f"log.warning('record.foreign', comment={value.format(text)})" for text in ESCAPES)
    )

    lines = done.stdout.split("\n")
    assert len(lines) == len(ESCAPES) + 1
    assert all(line.isprintable() for line in lines)


def test_json_contains_no_terminal_escapes(run: Run) -> None:
    """Terminals also interpret the control characters beyond ASCII."""
    done = run(
        "configure_logs(console=False)\n"
        + "\n".join(f"log.warning('record.foreign', comment={text!r})" for text in [*ESCAPES, "a\x85b", "a\u2028b"])
    )

    controls = {character for character in done.stdout if unicodedata.category(character) in {"Cc", "Zl"}}
    assert controls == {"\n"}
    assert [event["comment"] for event in events_of(done.stdout)][: len(ESCAPES)] == ESCAPES


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
    assert 'text="two words"' in done.stdout
    assert "items=a,b" in done.stdout


def test_event_begins_with_its_name(run: Run) -> None:
    done = run("configure_logs(console=False); log.info('x', key=1)")

    assert list(events_of(done.stdout)[0]) == ["timestamp", "level", "event", "key"]


def test_dropped_lines_are_counted(repository: Path, clean_environment: dict[str, str]) -> None:
    program = HEAD + "\nfrom lifecycle.runtime.logs import dropped_lines\n"
    program += "configure_logs(console=False); log.info('x'); log.info('y'); flush_logs(60); exit(dropped_lines())"
    with Path("/dev/full").open("w") as disk:
        done = subprocess.run(
            [sys.executable, "-c", program],
            check=False,
            stdout=disk,
            stderr=subprocess.PIPE,
            cwd=repository,
            env=clean_environment,
        )

    assert (done.returncode, done.stderr) == (2, b"")
