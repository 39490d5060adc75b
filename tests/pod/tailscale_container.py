"""A simulated tailscale container, with the variables, key file and health endpoint of the real one."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from threading import Thread

from tests.simulators.vpn_client import VpnClient

STATE = Path("/tmp")
"""The folder of the simulated state, an emptyDir. The real container stores its state in a Secret."""


class Health(BaseHTTPRequestHandler):
    """The health endpoint. `stay_connected` sets `has_address`."""

    has_address = False

    def do_GET(self) -> None:
        """Return 200 once the node has an address."""
        status = HTTPStatus.OK if Health.has_address else HTTPStatus.SERVICE_UNAVAILABLE
        self.send_response(status if self.path == "/healthz" else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Length", "0")
        self.end_headers()


def stay_connected(login_server: str, key_file: Path) -> None:
    """Register with the simulated Headscale, and stay connected until SIGTERM."""
    client = VpnClient(
        login_server,
        key_file=key_file,
        hostname=os.environ["TS_HOSTNAME"],
        state_dir=STATE,
        auth_once=os.environ["TS_AUTH_ONCE"] == "true",
        interface="tailscale0",
    )
    client.start()
    Health.has_address = True
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    client.stop()


REQUIRED_VALUES = {
    "TS_USERSPACE": ("false", "all clients would connect from 127.0.0.1"),
    "TS_ENABLE_HEALTH_CHECK": ("true", "the startup probe would fail"),
    "TS_ACCEPT_DNS": ("false", "tailscaled would rewrite the pod's resolv.conf"),
}
"""The value of each variable on which the other containers depend, and what would happen with another value."""


def health_address(variables: Mapping[str, str]) -> tuple[str, int]:
    """Return the address and port of the health endpoint. Like tailscale, accept no hostname, and require an address.

    Raises:
        ValueError: the host is missing or is not an IP address.
    """
    address, _, port = variables["TS_LOCAL_ADDR_PORT"].rpartition(":")
    return str(ip_address(address.removeprefix("[").removesuffix("]"))), int(port)


def main() -> None:
    """Check the environment variables like the real container, and register a node."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    for name, (value, consequence) in REQUIRED_VALUES.items():
        if os.environ.get(name) != value:
            sys.exit(f"{name} is not {value}: {consequence}")
    if not os.environ["TS_KUBE_SECRET"]:
        sys.exit("TS_KUBE_SECRET is empty: each restart would register a new node")
    server = ThreadingHTTPServer(health_address(os.environ), Health)
    Thread(target=server.serve_forever, daemon=True).start()
    key_file = Path(os.environ["TS_AUTHKEY"].removeprefix("file:"))
    login_server = os.environ["TS_EXTRA_ARGS"].removeprefix("--login-server=")
    stay_connected(login_server, key_file)


if __name__ == "__main__":
    main()
