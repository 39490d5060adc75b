"""Test the effect of SIGTERM and SIGINT on a process. Each test runs a program and sends signals to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import socketpair

import pytest

from lifecycle.runtime.stop import GRACE_S, REPORT_S, StopEvent

# A process that does not end within this time hangs, however slow the machine is.
HANG_TIMEOUT_S = 60

PRINT_READY = "print('ready', flush=True)"

# Each program starts with this code. It restores the default handling of signals, because child processes inherit
# ignored signals, and pytest can ignore SIGINT (as a background process) or SIGHUP (under nohup).
#
# The tests create a `Stop(STATUS, report)`. After a signal, it calls `report`, and `finish` waits until `report` has
# returned. If the process does not end soon after the signal, `Stop` ends it with the exit status STATUS.
PROGRAM_START = """
import signal
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from threading import Event
from lifecycle.runtime.stop import Stop, exit_on_stop_signals

def report(name):
    print("reported", name, flush=True)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(repository: Path, clean_environment: dict[str, str]) -> Iterator[Start]:
    """Return a function that starts a Python program with `Stop` and `report`, and waits until it prints `ready`."""
    children: list[subprocess.Popen[str]] = []

    def run(program: str, *, prints_ready: bool = True) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM_START + textwrap.dedent(program)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=repository,
            env=clean_environment,
        )
        children.append(child)
        if prints_ready:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n", child.communicate()[1]
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()


def wait_for(child: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait until a program ends, and return its exit status and its output after `ready`."""
    stdout, stderr = child.communicate(timeout=HANG_TIMEOUT_S)
    return child.returncode, stdout, stderr


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_wait(start: Start, stop_signal: signal.Signals) -> None:
    """After a `Stop` is created, a signal no longer has the effect of `exit_on_stop_signals`."""
    child = start("""
        exit_on_stop_signals(3)
        stop = Stop(7, report)
        print("set before the signal" if stop.is_set() else "ready", flush=True)
        stop.wait(3600)
        stop.finish()
        print("done", flush=True)
    """)

    child.send_signal(stop_signal)

    assert wait_for(child) == (0, f"reported {stop_signal.name}\ndone\n", "")


def test_event_is_set_before_the_stop_is_reported(start: Start) -> None:
    """A `report` that blocks does not delay the stop."""
    child = start(f"""
        stop = Stop(7, lambda name: Event().wait())
        {PRINT_READY}
        stop.wait(3600)
        print("done", flush=True)
    """)

    child.terminate()

    assert wait_for(child) == (0, "done\n", "")


@pytest.mark.parametrize(
    ("report", "work", "status"),
    [
        pytest.param("report", "Event().wait()", 0, id="hanging, with status 0"),
        pytest.param("report", "Event().wait()", 1, id="hanging, with status 1"),
        pytest.param("report", "while True: pass", 1, id="busy loop"),
        pytest.param("lambda name: Event().wait()", "Event().wait()", 1, id="report that blocks"),
        pytest.param("lambda name: 1 / 0", "Event().wait()", 1, id="report that raises an exception"),
    ],
)
def test_process_that_continues_after_the_signal_is_ended(start: Start, report: str, work: str, status: int) -> None:
    child = start(f"""
        Stop({status}, {report})
        {PRINT_READY}
        {work}
    """)

    child.terminate()

    assert wait_for(child)[0] == status


def test_second_signal_has_no_effect(start: Start) -> None:
    """Pressing Ctrl-C twice prints no traceback."""
    child = start(f"""
        stop = Stop(7, report)
        {PRINT_READY}
        stop.wait()
        stop.finish()
        print("stopping", flush=True)
        Event().wait()
    """)
    assert child.stdout is not None

    child.terminate()
    assert [child.stdout.readline() for _ in range(2)] == ["reported SIGTERM\n", "stopping\n"]
    child.send_signal(signal.SIGINT)
    child.terminate()

    assert wait_for(child) == (7, "", "")


def test_other_signals_have_their_default_action(start: Start) -> None:
    child = start(f"""
        Stop(7, report)
        {PRINT_READY}
        Event().wait()
    """)

    child.send_signal(signal.SIGHUP)

    assert wait_for(child) == (-signal.SIGHUP, "", "")


@pytest.mark.parametrize("stop_signal", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("status", [0, 1])
def test_signal_before_a_stop_is_created_ends_the_process(
    start: Start, stop_signal: signal.Signals, status: int
) -> None:
    child = start(f"""
        exit_on_stop_signals({status})
        {PRINT_READY}
        Event().wait()
    """)

    child.send_signal(stop_signal)

    assert wait_for(child) == (status, "", "")


def test_signal_ends_a_process_that_could_not_start_threads(start: Start) -> None:
    child = start(f"""
        from tests.threads import refused_threads
        exit_on_stop_signals(3)
        with refused_threads():
            stop = Stop(7, report)
        stop.finish()
        {PRINT_READY}
        Event().wait()
    """)

    child.terminate()

    assert wait_for(child) == (3, "", "")


@pytest.mark.parametrize("slow_module", ["structlog", "lifecycle.runtime.stop"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        pytest.param(["dns-watch"], 0, id="dns-watch"),
        pytest.param(["cleanup"], 1, id="cleanup"),
        pytest.param(["prune", "--yes"], 1, id="prune"),
        pytest.param(["dns-watch", "--dry-run"], 1, id="dry-run"),
    ],
)
def test_signal_during_a_slow_import_ends_the_program(
    start: Start, tmp_path: Path, arguments: list[str], status: int, slow_module: str
) -> None:
    """A process must end two seconds after a signal. With a low CPU limit, the imports can take longer.

    `main` blocks signals until it has imported lifecycle.runtime.stop, so they take effect after this import.
    """
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    child = start(
        f"""
        import sys

        class SlowImport:
            def find_spec(self, name, path=None, target=None):
                if name == {slow_module!r}:
                    open({str(fifo)!r}).read()

        sys.meta_path.insert(0, SlowImport())
        sys.modules.pop({slow_module!r}, None)
        from lifecycle.__main__ import main
        sys.argv = ["lifecycle", *{arguments}]
        sys.exit(main())
        """,
        prints_ready=False,
    )
    # open() returns when the import opens the FIFO too. The import continues when the FIFO is closed.
    with fifo.open("wb", buffering=0) as end_of_fifo:
        child.terminate()
        if slow_module == "lifecycle.runtime.stop":
            end_of_fifo.close()
        assert wait_for(child) == (status, "", "")


def test_process_has_to_end_within_two_seconds() -> None:
    """docs/reference.md promises this."""
    assert GRACE_S < 2
    assert REPORT_S < GRACE_S


# --- Waits that also end when a socket has data --------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_set", "has_data"),
    [
        pytest.param(True, False, id="stop"),
        pytest.param(False, True, id="data"),
        pytest.param(True, True, id="both"),
    ],
)
def test_stop_or_data_in_the_socket_ends_a_wait(is_set: bool, has_data: bool) -> None:
    """The wait returns True if the socket has data."""
    receiver, sender = socketpair()
    stop = StopEvent()
    with receiver, sender, ThreadPoolExecutor() as pool:
        future = pool.submit(stop.wait_readable, receiver, 3600)
        if has_data:
            sender.send(b"data")
        if is_set:
            stop.set()
        assert future.result(HANG_TIMEOUT_S) == has_data
