"""Stands in for the tailscale container: the same variables, the same key file, the same health check."""

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
"""An emptyDir, which outlives the container and not the pod."""


class Health(BaseHTTPRequestHandler):
    """Well once the node has an address."""

    well = False

    def do_GET(self) -> None:
        """The one page there is."""
        status = HTTPStatus.OK if Health.well else HTTPStatus.SERVICE_UNAVAILABLE
        self.send_response(status if self.path == "/healthz" else HTTPStatus.NOT_FOUND)
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


REFUSED = {
    "TS_USERSPACE": ("false", "everybody would come from 127.0.0.1"),
    "TS_ENABLE_HEALTH_CHECK": ("true", "nobody would answer the startup probe"),
    "TS_ACCEPT_DNS": ("false", "the pod's own resolv.conf would be rewritten"),
}
"""Variables that the pod's other containers rely on: their value, and what another would do. Unset is another."""


def health_address(variables: Mapping[str, str]) -> tuple[str, int]:
    """Where to say how it is; the real one takes an address and a port, and neither a name nor a port alone.

    Raises:
        ValueError: it is something else.
    """
    address, _, port = variables["TS_LOCAL_ADDR_PORT"].rpartition(":")
    return str(ip_address(address.removeprefix("[").removesuffix("]"))), int(port)


def main() -> None:
    """Do what the variables say."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    for name, (value, otherwise) in REFUSED.items():
        if os.environ.get(name) != value:
            sys.exit(f"{name} is not {value}: {otherwise}")
    if not os.environ["TS_KUBE_SECRET"]:
        sys.exit("TS_KUBE_SECRET is empty: the node would be another one after each restart")
    server = ThreadingHTTPServer(health_address(os.environ), Health)
    Thread(target=server.serve_forever, daemon=True).start()
    key_file = Path(os.environ["TS_AUTHKEY"].removeprefix("file:"))
    login_server = os.environ["TS_EXTRA_ARGS"].removeprefix("--login-server=")
    join(login_server, key_file)


if __name__ == "__main__":
    main()
