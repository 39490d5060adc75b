"""Run the program as a process in the environment of a pod, with simulators of Headscale and Cloudflare."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event, Timer
from typing import Any, Self
from wsgiref.types import StartResponse, WSGIEnvironment

from tests.builders import NAME, OUR_COMMENT
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator, Node
from tests.simulators.serve import serve

PROGRAM = str(Path(sys.executable).with_name("lifecycle"))

# A process that has not ended after this time is considered to hang.
HANG_TIMEOUT_S = 60.0
# A test does not search more lines than this for an event.
MAX_LINES = 200


@dataclass(frozen=True, slots=True)
class CompletedRun:
    """The result of a process that has ended.

    Attributes:
        peak_memory: the peak memory in bytes, or 0 if the process was started with `Pod.start_command`.
    """

    status: int
    stdout: str
    stderr: str
    peak_memory: int = 0

    @property
    def output(self) -> str:
        """Standard output, then standard error."""
        return self.stdout + self.stderr

    @property
    def events(self) -> list[dict[str, Any]]:
        """The logged events: one per line of standard output."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def last_event(self) -> dict[str, Any]:
        """The last event."""
        return self.events[-1]

    def events_named(self, name: str) -> list[dict[str, Any]]:
        """Return the events with this name."""
        return [event for event in self.events if event["event"] == name]


class Fork:
    """A process that runs the program. It starts fast, because it is a fork of a process that has imported the program.

    Its methods are those of `subprocess.Popen`.

    Args:
        job: the arguments, environment and folders of the process, with the keys that fork_server.py expects.
    """

    def __init__(self, **job: Any) -> None:
        output, child_output = os.pipe()
        result, child_result = os.pipe()
        self.stdout, self._result = os.fdopen(output), os.fdopen(result)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `communicate`
        files = [child_output, self._errors.fileno(), child_result]
        socket.send_fds(fork_server(), [json.dumps(job).encode()], files)
        os.close(child_output)
        os.close(child_result)
        self.pid = int(self._result.readline())
        self.returncode: int | None = None
        self.peak_memory = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if not self.stdout.closed:
            with suppress(subprocess.TimeoutExpired):
                self.communicate()

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = HANG_TIMEOUT_S) -> tuple[str, str]:
        """Wait until the process has ended, and return its output. A process that hangs is killed."""
        has_timed_out = Event()

        def time_out() -> None:
            has_timed_out.set()
            self.kill()

        timer = Timer(timeout, time_out)
        timer.start()
        out = self.stdout.read()
        self.returncode, self.peak_memory = map(int, self._result.readline().split())
        timer.cancel()
        self._errors.seek(0)
        errors = self._errors.read()
        for file in (self.stdout, self._result, self._errors):
            file.close()
        if has_timed_out.is_set():
            raise subprocess.TimeoutExpired("lifecycle", timeout)
        return out, errors


@cache
def fork_server() -> socket.socket:
    """Start the server that forks processes for the tests, and return its socket. Closing the socket ends it."""
    client, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with server_end:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.process.fork_server", str(server_end.fileno())],
            cwd=Path(__file__).parents[2],
            pass_fds=[server_end.fileno()],
            stdin=subprocess.DEVNULL,
        )
    atexit.register(server.wait)
    atexit.register(client.close)
    return client


class Running:
    """A process that a test has started."""

    def __init__(self, process: subprocess.Popen[str] | Fork) -> None:
        self._process = process
        self._output = ""

    def kill(self) -> None:
        """Kill the process if it is still running."""
        with self._process:
            self._process.kill()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def find_event(self, *names: str) -> dict[str, Any] | None:
        """Read the log until one of these events, and return it; None after MAX_LINES or at the end of the log."""
        assert self._process.stdout is not None
        for _ in range(MAX_LINES):
            line = self._process.stdout.readline()
            self._output += line
            if not line:
                break
            if any(f'"{name}"' in line for name in names):
                event: dict[str, Any] = json.loads(line)
                if event["event"] in names:
                    return event
        return None

    def wait_for_event(self, name: str) -> dict[str, Any]:
        """Read the log until an event with this name, and return the event. The process must log it."""
        event = self.find_event(name)
        assert event is not None, f"the process did not log {name}:\n{self._output}{self.wait().stderr}"
        return event

    def stop(self, number: signal.Signals = signal.SIGTERM) -> CompletedRun:
        """Send a signal and wait until the process has ended."""
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> CompletedRun:
        """Wait until the process has ended."""
        try:
            out, errors = self._process.communicate(timeout=HANG_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the process did not end:\n{self._output}") from None
        assert self._process.returncode is not None
        peak_memory = self._process.peak_memory if isinstance(self._process, Fork) else 0
        return CompletedRun(self._process.returncode, self._output + out, errors, peak_memory)


class Pod:
    """A pod, and the simulated Headscale and Cloudflare that it can reach. Cloudflare has the zone example.com.

    Args:
        headscale: the simulator to serve on loopback.
        environment: variables that every process needs, such as PATH.
        working_directory: the working directory of its processes, which contains the volume with the key file.
        stack: when the stack closes, the processes are killed and the servers stop.

    Attributes:
        headscale_requested: set when Headscale receives the first request.
    """

    def __init__(
        self,
        headscale: HeadscaleSimulator,
        *,
        environment: Mapping[str, str],
        working_directory: Path,
        stack: ExitStack,
    ) -> None:
        self.headscale = headscale
        self.cloudflare = CloudflareSimulator()
        self.zone_id = self.cloudflare.add_zone("example.com")
        self.headscale_requested = Event()
        headscale_url = stack.enter_context(serve(self._serve_headscale))
        cloudflare_url = stack.enter_context(serve(self.cloudflare))
        # A server stops only after its hanging requests have ended.
        stack.callback(headscale.faults.release)
        stack.callback(self._kill_all)
        self.working_directory = working_directory
        self._started: list[Running] = []
        self.volume = working_directory / "volume"
        self.volume.mkdir()
        self.key_file = self.volume / "authkey"
        self.termination_log = working_directory / "termination-log"
        self.environment = {
            **environment,
            # The program must work with only these settings and those for the simulators below.
            "HEADSCALE_NAMESPACE": "headscale",
            "CLOUDFLARE_API_TOKEN": self.cloudflare.token,
            "CLOUDFLARE_ZONE_ID": self.zone_id,
            "DOMAIN_NAME": "example.com",
            "AUTHKEY_OUTPUT_PATH": str(self.key_file),
            # The addresses and the API key of the simulators.
            "HEADSCALE_URL": headscale_url,
            "HEADSCALE_API_KEY": headscale.api_key,
            "CLOUDFLARE_API_URL": f"{cloudflare_url}/client/v4",
            # The kubelet sets this variable. Without TS_HOSTNAME, the hostname is grafana.example.com.
            "HOSTNAME": "grafana-0",
        }

    def _serve_headscale(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.headscale_requested.set()
        return self.headscale(environ, start_response)

    def add_leftovers(self, *, user: str = "svc") -> Node:
        """Add the node and the record of an earlier pod, and return the node."""
        node = self.headscale.add_node(NAME, user=user, online=False)
        self.cloudflare.add_record(self.zone_id, type="A", name=NAME, content=node.address, ttl=60, comment=OUR_COMMENT)
        return node

    def add_workload(self) -> Node:
        """Add an online node and a record with its address, and return the node."""
        node = self.headscale.add_node(NAME, user="svc")
        self.cloudflare.add_record(self.zone_id, type="A", name=NAME, content=node.address, comment=OUR_COMMENT)
        return node

    # --- Processes ----------------------------------------------------------------------------------------

    def start(self, *arguments: str, **variables: str) -> Running:
        """Start the program. It treats an empty variable as unset."""
        return self.fork(arguments, variables)

    def fork(
        self, arguments: Iterable[str], variables: Mapping[str, str], *, service_account: Path | None = None
    ) -> Running:
        """Start the program, optionally with a folder mounted as its service account."""
        fork = Fork(
            arguments=list(arguments),
            environment={**self.environment, **variables},
            folder=str(self.working_directory),
            service_account=str(service_account or ""),
            termination_log=str(self.termination_log),
        )
        return self._keep(fork)

    def start_command(self, *command: str, **variables: str) -> Running:
        """Start any program in this environment."""
        process = subprocess.Popen(
            command,
            env=self.environment | variables,
            cwd=self.working_directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self._keep(process)

    def _keep(self, process: subprocess.Popen[str] | Fork) -> Running:
        self._started.append(Running(process))
        return self._started[-1]

    def _kill_all(self) -> None:
        for running in self._started:
            running.kill()

    def run(self, *arguments: str, **variables: str) -> CompletedRun:
        """Run the program and wait until it has ended."""
        return self.start(*arguments, **variables).wait()

    # --- State --------------------------------------------------------------------------------------------

    def secrets_in(self, *texts: str) -> list[str]:
        """Return the secrets of Headscale and Cloudflare that these texts contain."""
        return [
            secret
            for secret in (*self.headscale.secrets(), *self.cloudflare.secrets())
            if any(secret in text for text in texts)
        ]

    @property
    def has_no_writes(self) -> bool:
        """True if Headscale and Cloudflare received no writes and the volume has no files."""
        return not self.headscale.writes and not self.cloudflare.writes and self.volume_files == []

    @property
    def volume_files(self) -> list[str]:
        """The names of the files in the volume that is shared with the tailscale container."""
        return sorted(path.name for path in self.volume.iterdir())

    def records(self, name: str = NAME) -> dict[str, str]:
        """Return the records of a name, as a dict from "TYPE CONTENT" to the comment."""
        return {
            f"{record.type} {record.content}": record.comment for record in self.cloudflare.records(self.zone_id, name)
        }
