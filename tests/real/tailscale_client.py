"""Run a real Tailscale client, which registers a node like the Tailscale container of a pod."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.pod.network import Host, create_host
from tests.real.programs import BackgroundProcess, Release, eventually, run_program

LOGIN_TIMEOUT: Final = "20s"

# tailscaled logs these lines when the server has accepted or refused a login. The error "context canceled" means that
# tailscaled itself has ended a request.
_AUTHORIZED: Final = re.compile(r"RegisterReq: got response; .* machineAuthorized=true")
_REFUSED: Final = re.compile(r"Received error: (?!.*context canceled)(.*)")


@contextmanager
def network_for_tailscale(name: str) -> Iterator[Host]:
    """Move this thread to a new network namespace for the duration of the block."""
    with create_host(name) as namespace:
        # Without a default route, tailscaled considers the network to be down. Nothing answers at the gateway.
        namespace.ip("link", "add", "uplink", "type", "veth", "peer", "name", "beyond")
        for interface in ("beyond", "uplink"):
            namespace.ip("link", "set", interface, "up")
        namespace.ip("address", "add", "192.0.2.1/24", "dev", "uplink")
        namespace.ip("route", "add", "default", "via", "192.0.2.2")
        with namespace.inside():
            yield namespace


class TailscaleClient:
    """A running tailscaled.

    By default, the client uses userspace networking, which needs no privileges and does not change the host's network.

    Args:
        release: has the paths of tailscale and tailscaled.
        folder: a folder for its state, socket and log. The path of a Unix socket has to be short.
        hostname: the hostname of its node.
        url: the URL of the Headscale server.
        interface: the network interface to create; "" = userspace networking.
        trust: a file with the certificate authority of the URL; None = the public authorities.
    """

    def __init__(
        self,
        release: Release,
        folder: Path,
        *,
        hostname: str,
        url: str,
        interface: str = "",
        trust: Path | None = None,
    ) -> None:
        self._release = release
        self._folder = folder
        self._hostname = hostname
        self._url = url
        self._interface = interface
        self._trust = trust
        self._process: BackgroundProcess | None = None
        self.start()

    def start(self) -> None:
        """Start the client. If its folder contains state of an earlier run, the client keeps its node."""
        self._folder.mkdir(exist_ok=True)
        state = self._folder / "state"
        process = self._process = BackgroundProcess(
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
        assert process.exit_status is None, process.output()

    def stop(self) -> None:
        """Stop the client and keep its state."""
        if self._process is not None:
            self._process.stop()

    def restart(self) -> None:
        """Restart the client with its state, like a container restart."""
        self.stop()
        self.start()

    def restart_and_wait_for_login(self) -> None:
        """Restart the client, and wait until it has logged in with its existing state."""
        log = self._log_from_now()
        self.restart()
        eventually(lambda: _AUTHORIZED.search(log()), "the client to log in", details=log)

    def reset(self) -> None:
        """Restart the client without its state, like a new pod."""
        self.stop()
        shutil.rmtree(self._folder)
        self.start()

    def log_in(self, key_file: Path) -> None:
        """Log in with a key file, and check that the server accepts the login."""
        error = self.login_error(key_file)
        assert error is None, error

    def login_error(self, key_file: Path) -> str | None:
        """Log in with a key file, and return the error of the server, or None if the server accepts the login.

        The result is read from the client's log, because `tailscale up` of a client with existing state can succeed
        before the server has responded.
        """
        log = self._log_from_now()
        with self._start_up(f"--auth-key=file:{key_file}") as login:
            result = eventually(
                lambda: _AUTHORIZED.search(log()) or _REFUSED.search(log()), "the result of the login", details=log
            )
            if result.re is _REFUSED:
                return result[1]
            eventually(lambda: login.exit_status is not None, "the login to end", details=log)
            # The server can accept the key and then refuse the node, because the node is expired.
            if login.exit_status:
                return login.output()
            refused = _REFUSED.search(log())
            return refused[1] if refused else None

    def _log_from_now(self) -> Callable[[], str]:
        """Return a function that returns what the client logs from now on."""
        path = self._folder / "tailscaled.log"
        start = path.stat().st_size if path.exists() else 0
        return lambda: path.read_bytes()[start:].decode(errors="replace")

    @contextmanager
    def login_link(self) -> Iterator[str]:
        """Log in without a key. Yield the link with which the caller registers the node, then wait for the login."""
        with self._start_up() as waiting:
            yield eventually(lambda: self.status()["AuthURL"] or None, "the link")
            eventually(lambda: waiting.exit_status is not None, "the login")
            assert waiting.exit_status == 0, waiting.output()

    def _start_up(self, *options: str) -> BackgroundProcess:
        """Start the command `tailscale up`, which ends when the client has logged in."""
        command = self._command(
            "up",
            f"--hostname={self._hostname}",
            f"--login-server={self._url}",
            "--accept-dns=false",
            # The tests need no firewall rules, and therefore no iptables.
            *(["--netfilter-mode=off"] if self._interface else []),
            f"--timeout={LOGIN_TIMEOUT}",
            *options,
        )
        return BackgroundProcess(
            command, log=self._folder / "up.log", environment=self._environment(), folder=self._folder
        )

    def status(self) -> dict[str, Any]:
        """Return the status of the client."""
        done = self._tailscale("status", "--json", "--peers=false")
        assert done.returncode == 0, done.stdout + done.stderr
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    @property
    def address(self) -> str:
        """The first address in the tailnet."""
        return self.addresses[0]

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses in the tailnet, IPv4 first."""
        return tuple(self.status()["TailscaleIPs"])

    @property
    def socket(self) -> Path:
        """The Unix socket for the commands of the client."""
        return self._folder / "s"

    def _command(self, *arguments: str) -> list[str | Path]:
        return [self._release.tailscale, f"--socket={self.socket}", *arguments]

    def _environment(self) -> dict[str, str]:
        trust = {} if self._trust is None else {"SSL_CERT_FILE": str(self._trust)}
        # Without TS_DISABLE_PORTMAPPER, the client would ask the router to map a port.
        return {"PATH": os.environ["PATH"], "HOME": str(self._folder), "TS_DISABLE_PORTMAPPER": "1", **trust}

    def _tailscale(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_program(self._command(*arguments), environment=self._environment(), folder=self._folder)
