"""Run the program many times and collect all its output."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

REPOSITORY = Path(__file__).parent.parent.parent

# After one of these events, a command would repeat the same steps until it is stopped.
REPEATING_EVENTS = ("retry.scheduled", "pass.failed", "pass.skipped", "pass.finished")


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one run.

    Attributes:
        status: the exit status.
        texts: the output by place, such as `termination log`.
        rss: the peak memory in bytes.
    """

    status: int
    texts: dict[str, str]
    rss: int

    @property
    def output(self) -> str:
        """Standard output and standard error."""
        return self.texts["output"]


class Runs:
    """Runs the program in forks of one process, which is faster than new processes."""

    def __init__(self, folder: Path, base: Mapping[str, str]) -> None:
        self._folder = folder
        self._base = base
        self._number = 0

    def __enter__(self) -> Self:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.security.forkserver"],
            cwd=REPOSITORY,
            env=dict(self._base),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def run(self, *arguments: str, **variables: str) -> Result:
        """Run one command until it ends or would repeat the same steps."""
        self._number += 1
        folder = self._folder / f"run-{self._number}"
        volume = folder / "volume"
        volume.mkdir(parents=True)
        pipe, termination_log = folder / "output", folder / "termination-log"
        os.mkfifo(pipe)
        termination_log.touch()
        port = _free_port()
        environment = {
            "AUTHKEY_OUTPUT_PATH": str(volume / "authkey"),
            "HEALTH_PORT": str(port),
            "HEALTH_ADDRESS": "127.0.0.1",
            "HOSTNAME": "grafana-0",
            "LOG_LEVEL": "debug",
            **variables,
        }
        job = {
            "arguments": arguments,
            "environment": {**self._base, **environment},
            "folder": str(folder),
            "output": str(pipe),
            "termination_log": str(termination_log),
        }
        pid = self._send(job)["pid"]
        texts: dict[str, str] = {}
        lines = []
        with pipe.open() as output:
            for line in output:
                lines.append(line)
                if any(f'"{event}"' in line for event in REPEATING_EVENTS):
                    if arguments == ("dns-watch",) and "metrics" not in texts:
                        texts |= _health(port)
                    if arguments[0] == "dns-watch" or '"retry.scheduled"' in line:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGTERM)
        end = self._receive()
        texts["output"] = "".join(lines)
        texts["termination log"] = termination_log.read_text()
        texts["files"] = "".join(
            f"{file.name}: {file.read_text()}" for file in volume.iterdir() if file.name != "authkey"
        )
        return Result(end["status"], texts, end["rss"])

    def _send(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return self._receive()

    def _receive(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        message: dict[str, Any] = json.loads(self._server.stdout.readline())
        return message


def _health(port: int) -> dict[str, str]:
    responses = {}
    for path in ("metrics", "readyz", "nodez", "livez"):
        with suppress(httpx.TransportError):
            responses[path] = httpx.get(f"http://127.0.0.1:{port}/{path}").text
    return responses


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
