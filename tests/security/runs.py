"""Run the program many times, and keep everything that it told anybody."""

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

# What says that a command will go on like this until somebody stops it.
GOES_ON = ("retry.scheduled", "pass.failed", "pass.skipped", "pass.finished")


@dataclass(frozen=True, slots=True)
class Told:
    """What one run told.

    Attributes:
        texts: by where it was told.
        rss: the most memory that it had, in bytes.
    """

    status: int
    texts: dict[str, str]
    rss: int

    @property
    def said(self) -> str:
        """Standard output and standard error."""
        return self.texts["output"]


class Runs:
    """Runs the program in forks of one process."""

    def __init__(self, folder: Path, base: Mapping[str, str]) -> None:
        self._folder = folder
        self._base = base
        self._number = 0

    def __enter__(self) -> Self:
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.security.zygote"],
            cwd=REPOSITORY,
            env=dict(self._base),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.close()
        self._zygote.wait()
        self._zygote.stdout.close()

    def run(self, *arguments: str, **variables: str) -> Told:
        """Run one command: to its end, or until it would go on like this for ever."""
        self._number += 1
        folder = self._folder / f"run-{self._number}"
        volume = folder / "volume"
        volume.mkdir(parents=True)
        pipe, last_words = folder / "said", folder / "last-words"
        os.mkfifo(pipe)
        last_words.touch()
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
            "said": str(pipe),
            "last_words": str(last_words),
        }
        pid = self._ask(job)["pid"]
        texts: dict[str, str] = {}
        lines = []
        with pipe.open() as said:
            for line in said:
                lines.append(line)
                if any(f'"{event}"' in line for event in GOES_ON):
                    if arguments == ("dns-watch",) and "metrics" not in texts:
                        texts |= _health(port)
                    if arguments[0] == "dns-watch" or '"retry.scheduled"' in line:
                        with suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGTERM)
        ended = self._answer()
        texts["output"] = "".join(lines)
        texts["termination log"] = last_words.read_text()
        texts["files"] = "".join(
            f"{file.name}: {file.read_text()}" for file in volume.iterdir() if file.name != "authkey"
        )
        return Told(ended["status"], texts, ended["rss"])

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._zygote.stdin is not None
        self._zygote.stdin.write(json.dumps(job) + "\n")
        self._zygote.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._zygote.stdout is not None
        answer: dict[str, Any] = json.loads(self._zygote.stdout.readline())
        return answer


def _health(port: int) -> dict[str, str]:
    told = {}
    for path in ("metrics", "readyz", "nodez", "livez"):
        with suppress(httpx.TransportError):
            told[path] = httpx.get(f"http://127.0.0.1:{port}/{path}").text
    return told


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
