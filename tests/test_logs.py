"""How a log line looks, in a process of its own: standard output is the process's."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]

HEAD = """
from datetime import UTC, datetime, timedelta
from pathlib import Path
import structlog
from pydantic import SecretStr
from lifecycle.runtime.logs import configure_logs

log = structlog.get_logger()
"""


@pytest.fixture
def run(repository: Path, clean_environment: dict[str, str]) -> Run:
    """Run a Python program that has `configure_logs` and `log`."""

    def start(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", HEAD + textwrap.dedent(program)],
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
        log.info("node.deleted", node_id="7", reason="left by an earlier pod")
        log.warning("pass.failed", wait_s=1.5)
    """)

    first, second = events_of(done.stdout)
    assert first | {"timestamp": ""} == {
        "event": "node.deleted",
        "level": "info",
        "node_id": "7",
        "reason": "left by an earlier pod",
        "timestamp": "",
    }
    assert (second["event"], second["level"], second["wait_s"]) == ("pass.failed", "warning", 1.5)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_time_is_utc_and_says_so(run: Run) -> None:
    done = run("configure_logs(console=False); log.info('x')", TZ="Asia/Tokyo")

    at = datetime.fromisoformat(events_of(done.stdout)[0]["timestamp"])
    assert at.utcoffset() == datetime.now(UTC).utcoffset()
    assert events_of(done.stdout)[0]["timestamp"].endswith("Z")


def test_whatever_is_in_an_event_it_stays_one_line(run: Run) -> None:
    done = run("""
        configure_logs(console=False)
        log.info("x", error="first\\nsecond\\r\\x85\\u2028third", quotes='a "b" \\\\ c')
    """)

    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["error"] == "first\nsecond\r\x85\u2028third"
    assert json.loads(done.stdout)["quotes"] == 'a "b" \\ c'


def test_values_of_every_kind_are_shown(run: Run) -> None:
    done = run("""
        configure_logs(console=False)
        log.info("x", at=datetime(2026, 3, 1, tzinfo=UTC), path=Path("/a"), none=None, some={"a"})
    """)

    assert events_of(done.stdout)[0] | {"timestamp": ""} == {
        "at": "2026-03-01 00:00:00+00:00",
        "event": "x",
        "level": "info",
        "none": None,
        "path": "/a",
        "some": "{'a'}",
        "timestamp": "",
    }


def test_a_secret_that_got_into_an_event_is_not_shown(run: Run) -> None:
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
def test_the_level_is_the_least_that_is_shown(run: Run, level: str, shown: list[str]) -> None:
    done = run(f"""
        configure_logs(console=False, level={level!r})
        for level in ("debug", "info", "warning", "error"):
            getattr(log, level)("x")
    """)

    assert [event["level"] for event in events_of(done.stdout)] == shown


def test_info_is_the_least_unless_it_is_said(run: Run) -> None:
    done = run("configure_logs(console=False); log.debug('no'); log.info('yes')")

    assert [event["event"] for event in events_of(done.stdout)] == ["yes"]


def test_logs_can_leave_standard_output_to_a_report(run: Run) -> None:
    done = run("configure_logs(console=False, to_stderr=True); log.info('x'); print('the report')")

    assert done.stdout == "the report\n"
    assert [event["event"] for event in events_of(done.stderr)] == ["x"]


def test_the_last_configuration_counts(run: Run) -> None:
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


def test_text_for_a_person_has_no_colours_in_a_pipe(run: Run) -> None:
    done = run("configure_logs(console=True); log.info('node.deleted', node_id='7')")

    assert "\x1b" not in done.stdout
    assert "node.deleted" in done.stdout
    assert "node_id=7" in done.stdout


def test_text_for_a_person_has_colours_on_a_terminal(repository: Path, clean_environment: dict[str, str]) -> None:
    ours, its = pty.openpty()
    program = HEAD + "configure_logs(console=True); log.info('node.deleted')"

    done = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=its, cwd=repository, env=clean_environment
    )
    seen = os.read(ours, 4096).decode()
    os.close(its)
    os.close(ours)

    assert done.returncode == 0
    assert "\x1b[" in seen
    assert "node.deleted" in seen


# Half a character as a service may send it, a path that is no UTF-8, and what is beyond ASCII.
ODD = [r"a\ud800b", r"/a\udcff", r"k\u00e9y \u2192 \U0001f600"]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("console", [True, False])
@pytest.mark.parametrize("to_stderr", [True, False])
def test_no_text_is_too_odd_to_be_logged(run: Run, console: bool, to_stderr: bool, encoding: str) -> None:
    """What others wrote into a record's comment does not end the program that wants to tell of it."""
    done = run(
        f"configure_logs(console={console}, to_stderr={to_stderr})\n"
        + "\n".join(f"log.error('record.foreign', comment='{text}')" for text in ODD),
        PYTHONIOENCODING=f"{encoding}:strict",
    )

    assert done.returncode == 0, done.stderr
    told = done.stderr if to_stderr else done.stdout
    assert told.count("record.foreign") == len(ODD)
    assert (done.stdout if to_stderr else done.stderr) == ""
    if not console and encoding == "utf-8":
        assert all(event["comment"] for event in events_of(told))


def test_a_report_may_be_as_odd(run: Run) -> None:
    done = run(r"configure_logs(console=True, to_stderr=True); print('a\ud800b')", PYTHONIOENCODING="utf-8:strict")

    assert (done.returncode, done.stdout) == (0, "a\\ud800b\n")


def test_every_event_is_out_before_the_program_ends_however_it_ends(run: Run) -> None:
    """A process that is cut off has told what it did until then."""
    done = run("""
        import os
        configure_logs(console=False)
        log.info("x")
        os._exit(3)
    """)

    assert [event["event"] for event in events_of(done.stdout)] == ["x"]
