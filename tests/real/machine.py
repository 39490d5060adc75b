"""A real Tailscale client that joins as the one in the pod does."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.real.programs import PATIENCE_S, Background, Release, eventually

LOGIN_TIMEOUT: Final = "20s"

_LET_IN: Final = re.compile(r"RegisterReq: got response; .* machineAuthorized=true")
_REFUSED: Final = re.compile(r"Received error: (?!.*context canceled)(.*)")


class Machine:
    """One tailscaled, with userspace networking as a rule: it needs no rights and leaves this machine's network alone.

    Args:
        release: whose client program to run.
        folder: for its state, socket and log; a short path.
        hostname: what it calls itself.
        url: the Headscale server's address.
        interface: the kernel's interface that it makes; "" = none.
    """

    def __init__(self, release: Release, folder: Path, *, hostname: str, url: str, interface: str = "") -> None:
        self._release = release
        self._folder = folder
        self._hostname = hostname
        self._url = url
        self._interface = interface
        self._process: Background | None = None
        self.start()

    def start(self) -> None:
        """Start it; with state from before it goes on as the same node."""
        self._folder.mkdir(exist_ok=True)
        state = self._folder / "state"
        process = self._process = Background(
            [
                self._release.tailscaled,
                f"--tun={self._interface or 'userspace-networking'}",
                f"--socket={self.socket}",
                f"--state={state}",
                f"--statedir={self._folder}",
                "--no-logs-no-support",
                "--port=0",
            ],
            log=self._folder / "tailscaled.log",
            environment=self._environment(),
            folder=self._folder,
        )
        eventually(lambda: process.exit_status is not None or self.socket.exists(), "tailscaled's socket")
        assert process.exit_status is None, process.words()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it; its state stays."""
        if self._process is not None:
            self._process.stop(number)

    def restart(self) -> None:
        """Stop and start it, its state kept: what a container restart is."""
        self.stop()
        self.start()

    def restart_logged_in(self) -> None:
        """Stop and start it, and wait until its kept state alone has brought it back."""
        log = self._log_from_here()
        self.restart()
        eventually(lambda: _LET_IN.search(log()), "the client to be back", tell=log)

    def forget(self) -> None:
        """Stop it and lose its state: what a new pod is."""
        self.stop()
        shutil.rmtree(self._folder)
        self.start()

    def up(self, key_file: Path) -> None:
        """Log in with a key file."""
        error = self.login_error(key_file)
        assert error is None, error

    def login_error(self, key_file: Path) -> str | None:
        """Log in with a key file, and give what the server has against it; None = nothing.

        Told from the client's log: with state that was kept, `up` is content with what the client
        remembers of the tailnet, before the server has said anything.
        """
        log = self._log_from_here()
        login = Background(
            [*self._command(*self._up(LOGIN_TIMEOUT)), f"--auth-key=file:{key_file}"],
            log=self._folder / "up.log",
            environment=self._environment(),
            folder=self._folder,
        )
        try:
            verdict = eventually(lambda: _LET_IN.search(log()) or _REFUSED.search(log()), "a verdict", tell=log)
            if verdict.re is _REFUSED:
                return verdict[1]
            eventually(lambda: login.exit_status is not None, "the login to end", tell=log)
            # A key can be taken and its node be expired all the same.
            refused = _REFUSED.search(log())
            return login.words() if login.exit_status else refused and refused[1]
        finally:
            login.stop()

    def _log_from_here(self) -> Callable[[], str]:
        """What its log says from now on."""
        path = self._folder / "tailscaled.log"
        start = path.stat().st_size if path.exists() else 0
        return lambda: path.read_bytes()[start:].decode(errors="replace")

    @contextmanager
    def asking_to_be_let_in(self) -> Iterator[str]:
        """Log in without a key: yields the link for the administrator, and ends when the node is in."""
        waiting = Background(
            self._command(*self._up(LOGIN_TIMEOUT)),
            log=self._folder / "up.log",
            environment=self._environment(),
            folder=self._folder,
        )
        try:
            yield eventually(lambda: self.status()["AuthURL"] or None, "the link")
            eventually(lambda: waiting.exit_status is not None, "the login")
            assert waiting.exit_status == 0, waiting.words()
        finally:
            waiting.stop()

    def _up(self, timeout: str) -> list[str]:
        return [
            "up",
            f"--hostname={self._hostname}",
            f"--login-server={self._url}",
            "--accept-dns=false",
            *(["--netfilter-mode=off"] if self._interface else []),
            f"--timeout={timeout}",
        ]

    def status(self) -> dict[str, Any]:
        """What it knows of itself."""
        done = self._tailscale("status", "--json", "--peers=false")
        assert done.returncode == 0, done.stdout + done.stderr
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    @property
    def address(self) -> str:
        """Its IPv4 address in the tailnet."""
        return self.addresses[0]

    @property
    def addresses(self) -> tuple[str, str]:
        """Its addresses in the tailnet, IPv4 first."""
        ipv4, ipv6 = self.status()["TailscaleIPs"]
        return ipv4, ipv6

    @property
    def socket(self) -> Path:
        """The socket of its LocalAPI."""
        return self._folder / "s"

    def _command(self, *arguments: str) -> list[str | Path]:
        return [self._release.tailscale, f"--socket={self.socket}", *arguments]

    def _environment(self) -> dict[str, str]:
        # The gateway is not asked to map a port.
        return {"PATH": os.environ["PATH"], "HOME": str(self._folder), "TS_DISABLE_PORTMAPPER": "1"}

    def _tailscale(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(*arguments),
            env=self._environment(),
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
