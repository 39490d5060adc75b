"""Being asked to stop, in a process of its own that gets real signals."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lifecycle.runtime.stop import GRACE_S

# A process that does not end is a failure, however slow the machine is.
PATIENCE_S = 60

SAYS_READY = "print('ready', flush=True)"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(repository: Path, clean_environment: dict[str, str]) -> Iterator[Start]:
    """Start a Python program that has `stop_event` and a `noted` that prints what it is told."""
    children: list[subprocess.Popen[str]] = []

    def run(program: str) -> subprocess.Popen[str]:
        # As at a terminal: whoever was started in the background ignores SIGINT, and all below do.
        head = """
            import signal
            signal.signal(signal.SIGINT, signal.default_int_handler)
            from threading import Event
            from lifecycle.runtime.stop import hold_stop_signals, stop_event

            def noted(name):
                print("told", name, flush=True)
        """
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(program)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=repository,
            env=clean_environment,
        )
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()


def end_of(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit status and what was printed since it was ready."""
    out, err = child.communicate(timeout=PATIENCE_S)
    return child.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wait_at_once(start: Start, number: signal.Signals) -> None:
    """The program goes on behind its wait and ends in its own way."""
    child = start(f"""
        stop = stop_event(7, noted)
        {SAYS_READY}
        print("stopped", stop.wait(3600), flush=True)
    """)

    child.send_signal(number)

    assert end_of(child) == (0, f"told {number.name}\nstopped True\n", "")


def test_the_event_is_set_only_after_somebody_was_told(start: Start) -> None:
    """What the log says comes before what the stop causes."""
    child = start(f"""
        stop = stop_event(7, lambda name: print("told while", stop.is_set(), flush=True))
        {SAYS_READY}
        stop.wait(3600)
    """)

    child.terminate()

    assert end_of(child) == (0, "told while False\n", "")


def test_without_a_signal_nothing_is_set(start: Start) -> None:
    child = start("""
        stop = stop_event(7, noted)
        print("stopped" if stop.is_set() else "ready", flush=True)
    """)

    assert end_of(child) == (0, "", "")


@pytest.mark.parametrize("status", [0, 1])
def test_work_that_hangs_is_cut_off_with_the_status_that_was_set(start: Start, status: int) -> None:
    child = start(f"""
        stop_event({status}, noted)
        {SAYS_READY}
        Event().wait()
    """)

    child.terminate()

    assert end_of(child) == (status, "told SIGTERM\n", "")


def test_work_that_hangs_in_a_busy_loop_is_cut_off(start: Start) -> None:
    child = start(f"""
        stop_event(7, noted)
        {SAYS_READY}
        while True:
            pass
    """)

    child.terminate()

    assert end_of(child)[0] == 7


def test_a_second_signal_changes_nothing(start: Start) -> None:
    """Somebody who presses Ctrl-C again does not get a traceback."""
    child = start(f"""
        stop = stop_event(7, noted)
        {SAYS_READY}
        stop.wait()
        print("stopping", flush=True)
        Event().wait()
    """)
    assert child.stdout is not None

    child.terminate()
    assert [child.stdout.readline() for _ in range(2)] == ["told SIGTERM\n", "stopping\n"]
    child.send_signal(signal.SIGINT)
    child.terminate()

    assert end_of(child) == (7, "", "")


def test_a_signal_that_came_before_anybody_waited_is_not_lost(start: Start) -> None:
    """While the program is still importing, a signal waits; for process number 1 it would be dropped."""
    child = start(f"""
        hold_stop_signals()
        {SAYS_READY}
        import signal
        while signal.SIGTERM not in signal.sigpending():
            pass
        print("still here", flush=True)
        stop = stop_event(7, noted)
        print("stopped", stop.wait(3600), flush=True)
    """)

    child.terminate()

    assert end_of(child) == (0, "still here\ntold SIGTERM\nstopped True\n", "")


def test_a_log_that_cannot_be_written_does_not_keep_the_program_alive(start: Start) -> None:
    """Whoever read our output may be gone: the stop counts all the same."""
    child = start(f"""
        def broken(name):
            raise BrokenPipeError("nobody reads")

        stop = stop_event(7, broken)
        {SAYS_READY}
        print("stopped", stop.wait(3600), flush=True)
    """)

    child.terminate()

    status, out, _ = end_of(child)
    assert (status, out) == (0, "stopped True\n")


def test_hanging_work_is_cut_off_although_the_log_cannot_be_written(start: Start) -> None:
    child = start(f"""
        def broken(name):
            raise BrokenPipeError("nobody reads")

        stop_event(7, broken)
        {SAYS_READY}
        Event().wait()
    """)

    child.terminate()

    assert end_of(child)[0] == 7


def test_other_signals_are_left_as_they_are(start: Start) -> None:
    child = start(f"""
        stop_event(7, noted)
        {SAYS_READY}
        Event().wait()
    """)

    child.send_signal(signal.SIGHUP)

    assert end_of(child) == (-signal.SIGHUP, "", "")


def test_what_does_not_end_is_cut_off_before_the_two_seconds_are_over() -> None:
    assert GRACE_S < 2
