"""Stands in for the tailscale container: the same variables, the same key file, the same health check."""

from __future__ import annotations

import os
import signal
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from tests.simulators.vpn_client import VpnClient

STATE = Path("/tmp")
"""An emptyDir, which outlives the container and not the pod."""


class Health(BaseHTTPRequestHandler):
    """Well once the node has an address."""

    well = False

    def do_GET(self) -> None:
        """The one page there is, whatever its path."""
        self.send_response(HTTPStatus.OK if Health.well else HTTPStatus.SERVICE_UNAVAILABLE)
        self.send_header("Content-Length", "0")
        self.end_headers()


def join(login_server: str, key_file: Path) -> None:
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
    join(login_server, key_file)


if __name__ == "__main__":
    main()
