"""Stands in for the tailscale container: the same variables, the same key file, the same health check.

Where the real tailscale and tailscaled are beside it, it starts those; else it is the VPN client simulator.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from tests.simulators.vpn_client import VpnClient

STATE = Path("/tmp")
SOCKET = STATE / "tailscaled.sock"


class Health(BaseHTTPRequestHandler):
    """Well once the node has an address."""

    well = False

    def do_GET(self) -> None:
        """The one page there is, whatever its path."""
        self.send_response(HTTPStatus.OK if Health.well else HTTPStatus.SERVICE_UNAVAILABLE)
        self.send_header("Content-Length", "0")
        self.end_headers()


def simulated(login_server: str, key_file: Path) -> None:
    """Join the simulated Headscale, and leave at SIGTERM."""
    client = VpnClient(
        login_server,
        key_file=key_file,
        hostname=os.environ["TS_HOSTNAME"],
        state_dir=STATE,
        auth_once=os.environ["TS_AUTH_ONCE"] == "true",
        interface="tailscale0",
    )
    client.start()
    Health.well = True
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    client.die()


def real(login_server: str, key_file: Path) -> None:
    """Start the real programs as their container does, and end them at SIGTERM."""
    device = Path("/dev/net/tun")
    device.parent.mkdir(exist_ok=True)
    if not device.exists():
        os.mknod(device, 0o600 | 0o020000, os.makedev(10, 200))
    state = [f"--state={STATE}/state", f"--statedir={STATE}", f"--socket={SOCKET}"]
    daemon = subprocess.Popen(["tailscaled", *state, *os.environ["TS_TAILSCALED_EXTRA_ARGS"].split()])
    while not SOCKET.exists() and daemon.poll() is None:
        time.sleep(0.05)
    subprocess.run(
        [
            *("tailscale", f"--socket={SOCKET}", "up", f"--auth-key=file:{key_file}", "--timeout=60s"),
            *(f"--hostname={os.environ['TS_HOSTNAME']}", f"--login-server={login_server}"),
            f"--accept-dns={os.environ['TS_ACCEPT_DNS']}",
        ],
        check=True,
    )
    Health.well = True
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    daemon.terminate()
    daemon.wait()


def main() -> None:
    """Do what the variables say."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    address, _, port = os.environ["TS_LOCAL_ADDR_PORT"].rpartition(":")
    server = ThreadingHTTPServer((address, int(port)), Health)
    Thread(target=server.serve_forever, daemon=True).start()
    if os.environ["TS_USERSPACE"] != "false" or os.environ["TS_ENABLE_HEALTH_CHECK"] != "true":
        sys.exit("it was not told to make an interface and to say how it is")
    key_file = Path(os.environ["TS_AUTHKEY"].removeprefix("file:"))
    login_server = os.environ["TS_EXTRA_ARGS"].removeprefix("--login-server=")
    (real if shutil.which("tailscaled") else simulated)(login_server, key_file)


if __name__ == "__main__":
    main()
