"""The real program as a process, in the environment of a pod."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Event, Timer
from typing import Any, Self
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.serve import serve

PROGRAM = str(Path(sys.executable).with_name("lifecycle"))

# A process that takes longer than this hangs.
HANGS_AFTER_S = 60.0
# More lines than a command logs before any expected event.
MANY_LINES = 200


@dataclass(frozen=True, slots=True)
class CompletedRun:
    """The exit status and the output of a process that has ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """The logged events: one per line of standard output."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    @property
    def last(self) -> dict[str, Any]:
        """The last event."""
        return self.events[-1]

    def named(self, name: str) -> list[dict[str, Any]]:
        """Return the events with a name."""
        return [event for event in self.events if event["event"] == name]


class Fork:
    """The program in a fork of a process that has imported it. The interface is that of `subprocess.Popen`."""

    def __init__(self, **job: Any) -> None:
        output, its_output = os.pipe()
        result, its_result = os.pipe()
        self.stdout, self._result = os.fdopen(output), os.fdopen(result)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed at the end
        files = [its_output, self._errors.fileno(), its_result]
        socket.send_fds(fork_server(), [json.dumps(job).encode()], files)
        os.close(its_output)
        os.close(its_result)
        self.pid = int(self._result.readline())
        self.returncode: int | None = None

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

    def communicate(self, timeout: float = HANGS_AFTER_S) -> tuple[str, str]:
        """Wait until the process has ended, and return its output. A process that hangs is killed."""
        timer = Timer(timeout, self.kill)
        timer.start()
        out = self.stdout.read()
        self.returncode = int(self._result.readline())
        timer.cancel()
        self._errors.seek(0)
        errors = self._errors.read()
        for file in (self.stdout, self._result, self._errors):
            file.close()
        if self.returncode == -signal.SIGKILL:
            raise subprocess.TimeoutExpired("lifecycle", timeout)
        return out, errors


@cache
def fork_server() -> socket.socket:
    """Start the server that forks for this test process. It ends when the socket is closed."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.process.fork_server", str(its.fileno())],
            cwd=Path(__file__).parents[2],
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
        )
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours


def popen(command: Iterable[str], *, environment: Mapping[str, str], folder: Path) -> subprocess.Popen[str]:
    """Start any program."""
    return subprocess.Popen(
        list(command),
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class Running:
    """A running process."""

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

    def until(self, name: str) -> dict[str, Any]:
        """Read the output until an event with this name is logged."""
        assert self._process.stdout is not None
        for _ in range(MANY_LINES):
            line = self._process.stdout.readline()
            self._output += line
            if not line:
                break
            event: dict[str, Any] = json.loads(line)
            if event["event"] == name:
                return event
        raise AssertionError(f"the process did not log {name}:\n{self._output}{self.wait().stderr}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> CompletedRun:
        """Send a signal and wait until the process has ended."""
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> CompletedRun:
        """Wait until the process has ended."""
        try:
            out, errors = self._process.communicate(timeout=HANGS_AFTER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, errors = self._process.communicate()
            raise AssertionError(f"the process did not end:\n{self._output}{out}{errors}") from None
        assert self._process.returncode is not None
        return CompletedRun(self._process.returncode, self._output + out, errors)


class Pod:
    """The environment of one pod, and both upstreams that it can reach.

    Args:
        headscale: served at `headscale_url`.
        cloudflare: served at `cloudflare_url`, with the zone example.com.
        base: variables that every process needs, such as PATH.
        working_directory: the working directory of its processes. The volume with the key file is in it.
    """

    def __init__(
        self,
        headscale: HeadscaleSimulator,
        cloudflare: CloudflareSimulator,
        *,
        headscale_url: str,
        cloudflare_url: str,
        base: Mapping[str, str],
        working_directory: Path,
    ) -> None:
        self.headscale = headscale
        self.cloudflare = cloudflare
        self.zone_id = cloudflare.add_zone("example.com")
        self.working_directory = working_directory
        self._started: list[Running] = []
        self.volume = working_directory / "volume"
        self.volume.mkdir()
        self.key_file = self.volume / "authkey"
        self.environment = {
            **base,
            # The settings of existing manifests.
            "HEADSCALE_NAMESPACE": "headscale",
            "CLOUDFLARE_API_TOKEN": cloudflare.token,
            "CLOUDFLARE_ZONE_ID": self.zone_id,
            "DOMAIN_NAME": "example.com",
            "AUTHKEY_OUTPUT_PATH": str(self.key_file),
            # The addresses of the simulators.
            "HEADSCALE_URL": headscale_url,
            "HEADSCALE_API_KEY": headscale.api_key,
            "CLOUDFLARE_API_URL": f"{cloudflare_url}/client/v4",
            # From the kubelet.
            "HOSTNAME": "grafana-0",
        }

    def start(self, *arguments: str, **variables: str) -> Running:
        """Start the program; "" unsets a variable."""
        return self.fork(arguments, variables)

    def fork(
        self, arguments: Iterable[str], variables: Mapping[str, str], *, service_account: Path | None = None
    ) -> Running:
        """Start the program, optionally with a folder mounted as its service account."""
        environment = {**self.environment, **variables}
        mounted = str(service_account or "")
        return self._keep(
            Fork(
                arguments=list(arguments),
                environment=environment,
                folder=str(self.working_directory),
                service_account=mounted,
            )
        )

    def start_command(self, *command: str, **variables: str) -> Running:
        """Start any program in this environment."""
        return self._keep(popen(command, environment=self.environment | variables, folder=self.working_directory))

    def _keep(self, process: subprocess.Popen[str] | Fork) -> Running:
        self._started.append(Running(process))
        return self._started[-1]

    def end_all(self) -> None:
        """Kill the processes that are still running."""
        for running in self._started:
            running.kill()

    def run(self, *arguments: str, **variables: str) -> CompletedRun:
        """Run the program and wait until it has ended."""
        return self.start(*arguments, **variables).wait()

    def secrets_in(self, *texts: str) -> list[str]:
        """Return the secrets of both upstreams that these texts contain."""
        return [
            secret
            for secret in (*self.headscale.secrets(), *self.cloudflare.secrets())
            if any(secret in text for text in texts)
        ]

    @property
    def has_no_writes(self) -> bool:
        """True if no upstream received a write and no file was written."""
        return not self.headscale.writes and not self.cloudflare.writes and self.volume_files == []

    @property
    def volume_files(self) -> list[str]:
        """The files in the volume that is shared with the tailscale container."""
        return sorted(path.name for path in self.volume.iterdir())

    def records(self, name: str = "grafana.example.com") -> dict[str, str]:
        """Return the comment of each record of a name, by type and content."""
        return {
            f"{record.type} {record.content}": record.comment for record in self.cloudflare.records(self.zone_id, name)
        }


class RequestDetector:
    """An application that sets an event when it receives a request."""

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application
        self.has_request = Event()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Set the event and forward the request."""
        self.has_request.set()
        return self._application(environ, start_response)


@contextmanager
def served_pod(
    environment: Mapping[str, str],
    folder: Path,
    headscale: HeadscaleSimulator,
    *,
    wrap: Callable[[WSGIApplication], WSGIApplication] = lambda application: application,
) -> Iterator[Pod]:
    """Serve both upstreams on loopback, and return a pod that uses them.

    Args:
        environment: of the processes.
        folder: their working directory.
        wrap: returns the application that is served as Headscale.
    """
    cloudflare = CloudflareSimulator()
    with serve(wrap(headscale)) as headscale_url, serve(cloudflare) as cloudflare_url:
        pod = Pod(
            headscale,
            cloudflare,
            headscale_url=headscale_url,
            cloudflare_url=cloudflare_url,
            base=environment,
            working_directory=folder,
        )
        try:
            yield pod
        finally:
            pod.end_all()
            # The servers wait for hanging requests.
            headscale.faults.release()
