"""Restart a real Headscale under real tailscale clients that use different login server URLs.

With http and a host name, tailscale connects to the given port once. Later connections use TLS on port 443 of that
host, and a Kubernetes Service for Headscale has no such port. These tests show that such a client does not reconnect.
Clients with the URL of deploy/base/tailscale.env or with a private IP address do.

Needs root, nginx, openssl and ip, and the programs that tests/real/conftest.py looks for. `TAILSCALE_BINARIES=<folder>`
adds clients: it has one folder per version, with tailscale and tailscaled. The tests run in a network namespace.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.pod.certificates import issue
from tests.pod.network import host
from tests.pod.rendering import containers, environment, of_kind, pod_spec, rendered
from tests.real.machine import Machine
from tests.real.programs import Background, Release, eventually, installed_releases
from tests.real.server import HeadscaleServer
from tests.real.workload import USER

CLIENTS_VARIABLE: Final = "TAILSCALE_BINARIES"

SERVICE_NAME: Final = "headscale.headscale.svc.cluster.local"
CLUSTER_IP: Final = "10.96.0.20"
"""A Service that forwards port 8080 to Headscale, as people create it."""
INGRESS_IP: Final = "10.96.0.21"

FORCED: Final = "forcing port 443 dial due to recent noise dial"
"""Logged by tailscale for each connection attempt within two minutes of the previous one.

With https or a private IP address, the message has no consequence.
"""

RECONNECTED_S: Final = 150.0
"""How long a client may take after an outage. Its longest backoff is about half a minute."""

NGINX: Final = """
worker_processes 1;
error_log stderr warn;
pid nginx.pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        "" close;
    }}
    proxy_http_version 1.1;
    proxy_set_header Host $host;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Connection $connection_upgrade;
    proxy_buffering off;
    proxy_read_timeout 1h;
    proxy_send_timeout 1h;
    server {{
        listen {cluster_ip}:8080;
        location / {{
            proxy_pass {headscale};
        }}
    }}
    server {{
        listen {ingress_ip}:80;
        return 301 https://$host$request_uri;
    }}
    server {{
        listen {ingress_ip}:443 ssl;
        ssl_certificate tls.crt;
        ssl_certificate_key tls.key;
        {locations}
    }}
}}
"""
"""The Service, and the parts of the external ingress controller's configuration that matter here."""

# Resolves names as in a cluster and trusts the certificate of the ingress.
WRAPPER: Final = """#!/bin/sh
export SSL_CERT_DIR={folder}/trust
exec unshare --mount --propagation private \
    sh -c 'mount --bind {folder}/hosts /etc/hosts && exec "$@"' sh {program} "$@"
"""


def shipped_url() -> str:
    """Return the login server of the rendered manifests."""
    documents = rendered("ollama")
    options = environment(containers(pod_spec(documents))["tailscale"], documents)["TS_EXTRA_ARGS"].split()
    (url,) = [option.removeprefix("--login-server=") for option in options if option.startswith("--login-server=")]
    return str(url)


def published_locations(headscale: str) -> str:
    """Return nginx locations for the paths that the rendered Ingress publishes."""
    (ingress,) = of_kind(rendered("ingress/external"), "Ingress")
    (rule,) = ingress["spec"]["rules"]
    operators = {"Exact": "=", "Prefix": ""}
    return "\n".join(
        f"location {operators[path['pathType']]} {path['path']} {{ proxy_pass {headscale}; }}"
        for path in rule["http"]["paths"]
    )


URLS: Final = {
    "http-name": f"http://{SERVICE_NAME}:8080",
    "http-address": f"http://{CLUSTER_IP}:8080",
    "shipped": shipped_url(),
}
RECONNECTING: Final = ("http-address", "shipped")


def client_releases() -> list[Release] | str:
    """Return the newest Headscale with each client that is installed, or what to install."""
    releases = installed_releases()
    if isinstance(releases, str):
        return releases
    missing = [name for name in ("ip", "nginx", "openssl", "unshare") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        return f"needs root and {', '.join(missing or ['ip'])}: as root, scripts/bootstrap --system"
    folder = os.environ.get(CLIENTS_VARIABLE)
    if folder is None:
        return releases[-1:]
    clients = sorted(path.parent for path in Path(folder).glob("*/tailscaled"))
    if not clients:
        return f"needs folders with tailscale and tailscaled in {CLIENTS_VARIABLE}={folder}"
    return [replace(releases[-1], tailscale=path / "tailscale", tailscaled=path / "tailscaled") for path in clients]


def client_name(release: Release) -> str:
    """Return the version that a client reports."""
    done = subprocess.run([release.tailscale, "version"], capture_output=True, text=True, check=True, timeout=60)
    return f"tailscale-{done.stdout.split()[0]}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test with every client, or skip it with the reason."""
    if "setup" in metafunc.fixturenames:
        found = client_releases()
        if isinstance(found, str):
            parameters = [pytest.param(None, marks=pytest.mark.skip(reason=found), id="none")]
        else:
            parameters = [pytest.param(release, id=client_name(release)) for release in found]
        metafunc.parametrize("setup", parameters, indirect=True)


@dataclass
class Setup:
    """Headscale, its Service and its ingress in one network namespace.

    Attributes:
        release: the programs, with tailscaled in the wrapper.
        stack: stops the clients.
    """

    release: Release
    server: HeadscaleServer
    folder: Path
    stack: ExitStack
    keys: int = 0
    machines: dict[str, Machine] = field(default_factory=dict)

    def new_key(self) -> Path:
        """Create a pre-auth key and return the file that contains it."""
        self.keys += 1
        path = self.folder / f"key{self.keys}"
        path.write_text(self.server.create_key(USER))
        return path

    def join(self, kind: str) -> Machine:
        """Start a client with a kind of URL, and log it in."""
        machine = Machine(self.release, self.folder / kind, hostname=f"{kind}.example.com", url=URLS[kind])
        self.stack.callback(machine.stop)
        machine.up(self.new_key())
        self.machines[kind] = machine
        self.wait_until_connected(kind)
        return machine

    def is_connected(self, kind: str) -> bool:
        """Return True if Headscale reports the client's only node as online."""
        return [node["online"] for node in self.server.nodes(f"{kind}.example.com")] == [True]

    def wait_until_connected(self, kind: str) -> None:
        """Wait until Headscale reports the client as online."""
        eventually(
            lambda: self.is_connected(kind),
            f"{kind} to be connected",
            details=self.log_of(kind),
            timeout_s=RECONNECTED_S,
        )

    def forced_connections(self, kind: str) -> int:
        """Return how many connections the client has forced to port 443."""
        return self.log_of(kind)().count(FORCED)

    def log_of(self, kind: str) -> Callable[[], str]:
        """Return a function that reads the client's log."""
        return partial((self.folder / kind / "tailscaled.log").read_text, errors="replace")


def wrapped_client(release: Release, folder: Path) -> Release:
    """Return the release with a tailscaled that runs in the wrapper."""
    wrapper = folder / "tailscaled"
    wrapper.write_text(WRAPPER.format(folder=folder, program=shlex.quote(str(release.tailscaled))))
    wrapper.chmod(0o755)
    return replace(release, tailscaled=wrapper)


@pytest.fixture
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    """Start Headscale and nginx, in a network namespace that this thread is in until the end of the test."""
    release: Release = request.param
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lc-", ignore_cleanup_errors=True)))
        namespace = stack.enter_context(host("login-server"))
        # Without a default route, tailscaled considers the network down.
        namespace.ip("link", "add", "uplink", "type", "veth", "peer", "name", "beyond")
        for interface in ("beyond", "uplink"):
            namespace.ip("link", "set", interface, "up")
        namespace.ip("address", "add", "192.0.2.1/24", "dev", "uplink")
        namespace.ip("route", "add", "default", "via", "192.0.2.2")
        for address in (CLUSTER_IP, INGRESS_IP):
            namespace.ip("address", "add", f"{address}/32", "dev", "lo")
        stack.enter_context(namespace.inside())
        (folder / "server").mkdir()
        server = stack.enter_context(HeadscaleServer(release, folder / "server"))
        server.create_user(USER)
        start_proxy(server.url, folder, stack)
        yield Setup(wrapped_client(release, folder), server, folder, stack)


def start_proxy(headscale: str, folder: Path, stack: ExitStack) -> None:
    """Run nginx as the Service and the ingress, and write what clients need to reach it."""
    ingress_name = URLS["shipped"].removeprefix("https://")
    proxy, trust = folder / "proxy", folder / "trust"
    proxy.mkdir()
    trust.mkdir()
    certificate, key = issue(ingress_name)
    (proxy / "tls.crt").write_text(certificate)
    (proxy / "tls.key").write_text(key)
    (trust / "ca.pem").write_text(certificate)
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{CLUSTER_IP} {SERVICE_NAME}\n{INGRESS_IP} {ingress_name}\n")
    (proxy / "nginx.conf").write_text(
        NGINX.format(
            cluster_ip=CLUSTER_IP,
            ingress_ip=INGRESS_IP,
            headscale=headscale,
            locations=published_locations(headscale),
        )
    )
    nginx = Background(
        ["nginx", "-p", f"{proxy}/", "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"],
        log=folder / "nginx.log",
        environment={"PATH": os.environ["PATH"]},
        folder=proxy,
    )
    stack.callback(nginx.stop)


@pytest.mark.parametrize("outage_s", [5, 25, 150])
def test_clients_after_an_outage_of_headscale(setup: Setup, outage_s: int) -> None:
    """Only a client whose URL has http and a host name does not reconnect."""
    for kind in URLS:
        setup.join(kind)
    setup.server.stop()
    forced = setup.forced_connections("http-name")
    back_at = time.monotonic() + outage_s
    eventually(lambda: time.monotonic() >= back_at, "the end of the outage", timeout_s=outage_s + 1.0)
    setup.server.start()
    for kind in RECONNECTING:
        setup.wait_until_connected(kind)
    # Attempts after the outage fail too, because nothing listens on port 443 of the Service.
    eventually(
        lambda: setup.forced_connections("http-name") >= forced + 3,
        "further attempts of the client",
        details=setup.log_of("http-name"),
        timeout_s=RECONNECTED_S,
    )
    assert not setup.is_connected("http-name")


def test_fresh_key_after_the_node_was_deleted(setup: Setup) -> None:
    """A restarted client connects twice, first with its old state, so its login with the key is forced to port 443."""
    for kind in URLS:
        machine = setup.join(kind)
        (deleted,) = setup.server.ids(f"{kind}.example.com")
        setup.server.delete_node(deleted)
        machine.restart()
        error = machine.login_error(setup.new_key())
        if kind in RECONNECTING:
            assert error is None
            setup.wait_until_connected(kind)
        else:
            assert error is not None
            assert ":443: connect: connection refused" in error
            assert setup.server.ids(f"{kind}.example.com") == []
