"""Test that tailscale reconnects after a restart of Headscale, with the tailscale container as rendered from deploy/.

Whether tailscale reconnects depends on the URL of the login server. If the URL has http and a host name, tailscale
connects to port 443 with TLS when its previous attempt was less than two minutes ago. A Kubernetes Service for
Headscale usually has no port 443, so such a client does not reconnect. One test shows this.

Each test runs in its own network namespace.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.pod.certificates import issue
from tests.pod.rendering import environment, manifests_of, of_kind
from tests.probe import BUSYBOX
from tests.process.cluster import Authority, with_service_account
from tests.real.command import DnsWatch
from tests.real.container import CONTAINER_MANIFEST, DOCUMENTS, PROGRAMS, SETTINGS, TailscaleContainer
from tests.real.programs import CLIENTS_VARIABLE, Release, eventually, installed_releases
from tests.real.proxy import NGINX_START, start_nginx
from tests.real.server import HeadscaleServer
from tests.real.tailscale_client import TailscaleClient, network_for_tailscale
from tests.real.workload import CONFIRM_TIMEOUT_S, USER, Workload
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.serve import serve

RENDERED_VERSION: Final = CONTAINER_MANIFEST["image"].partition("@")[0].rpartition(":v")[2]
"""The version of the Tailscale client in the rendered manifests."""

OLD_VERSION: Final = "1.80.3"
"""A Tailscale client of the oldest minor version that Headscale 0.29 accepts."""

SERVICE_NAME: Final = "headscale.headscale.svc.cluster.local"

CLUSTER_IP: Final = "10.96.0.20"
"""The address of a Service that forwards port 8080 to Headscale."""

INGRESS_IP: Final = "10.96.0.21"
"""The address of the ingress controller, which publishes Headscale with https."""

PORT_443_MESSAGE: Final = "forcing port 443 dial due to recent noise dial"
"""tailscale logs this for each connection attempt within two minutes of the previous attempt.

If the URL has https or a private IP address, tailscale logs it too, but uses the port of the URL.
"""

RECONNECT_TIMEOUT_S: Final = 150.0
"""The time limit for a client to reconnect. Its longest backoff is about half a minute."""

NGINX: Final = (
    NGINX_START
    + """
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
)
"""The configuration of an nginx that acts as the Service and as the ingress controller."""

WRAPPER: Final = """#!/bin/sh
export SSL_CERT_DIR={folder}/trust
exec unshare --mount --propagation private \
    sh -c 'mount --bind {folder}/hosts /etc/hosts && exec "$@"' sh {program} "$@"
"""
"""A script that runs tailscaled with its own /etc/hosts and its own trusted certificates."""


def rendered_url() -> str:
    """Return the login server of the rendered manifests."""
    options = environment(CONTAINER_MANIFEST, DOCUMENTS)["TS_EXTRA_ARGS"].split()
    (url,) = [option.removeprefix("--login-server=") for option in options if option.startswith("--login-server=")]
    return str(url)


def published_locations(headscale: str) -> str:
    """Return nginx locations for the paths that the rendered Ingress publishes."""
    (ingress,) = of_kind(manifests_of("ingress/external"), "Ingress")
    (rule,) = ingress["spec"]["rules"]
    operators = {"Exact": "=", "Prefix": ""}
    return "\n".join(
        f"location {operators[path['pathType']]} {path['path']} {{ proxy_pass {headscale}; }}"
        for path in rule["http"]["paths"]
    )


INGRESS_NAME: Final = rendered_url().removeprefix("https://")

URLS: Final = {"http-name": f"http://{SERVICE_NAME}:8080", "http-address": f"http://{CLUSTER_IP}:8080"}
"""Login servers that the rendered manifests do not use, by the hostname of the client that uses them."""


def release_with_client(version: str) -> Release | str:
    """Return the newest Headscale and this version of the Tailscale client, or a message that says what to install."""
    releases = installed_releases()
    if isinstance(releases, str):
        return releases
    missing = [name for name in ("ip", "nginx", "nsenter", "openssl", "unshare", "wget") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing or BUSYBOX is None:
        return f"needs root and {', '.join(missing or ['busybox'])}: as root, scripts/bootstrap --system"
    if not Path("/dev/net/tun").exists():
        return "needs /dev/net/tun: modprobe tun"
    folder = Path(os.environ.get(CLIENTS_VARIABLE, "/nonexistent"), version)
    if not all((folder / program).is_file() for program in PROGRAMS):
        return f"needs {', '.join(PROGRAMS)} in the folder {version} of {CLIENTS_VARIABLE}"
    # A build of the main branch may have new errors.
    newest = [release for release in releases if release.name != "head"][-1]
    return replace(newest, tailscale=folder / "tailscale", tailscaled=folder / "tailscaled", client=version)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test with every client, or skip it with the reason."""
    if "setup" in metafunc.fixturenames:
        releases = {version: release_with_client(version) for version in (RENDERED_VERSION, OLD_VERSION)}
        parameters = [
            pytest.param(release, marks=pytest.mark.skipif(isinstance(release, str), reason=str(release)), id=version)
            for version, release in releases.items()
        ]
        metafunc.parametrize("setup", parameters, indirect=True)


@dataclass
class Setup:
    """Headscale, with its Service and its ingress controller, in one network namespace.

    Attributes:
        release: the programs.
        wrapped_release: the programs, with WRAPPER in place of tailscaled.
        stack: stops the clients when it is closed.
    """

    release: Release
    wrapped_release: Release
    server: HeadscaleServer
    folder: Path
    stack: ExitStack

    def join(self, hostname: str) -> None:
        """Start a client with the URL that URLS has for this hostname, and log it in."""
        client = TailscaleClient(self.wrapped_release, self.folder / hostname, hostname=hostname, url=URLS[hostname])
        self.stack.callback(client.stop)
        key_file = self.folder / f"{hostname}.key"
        key_file.write_text(self.server.create_key(USER))
        client.log_in(key_file)
        self.wait_until_connected(hostname, self.log_reader(hostname))

    def is_connected(self, hostname: str) -> bool:
        """Return True if Headscale reports the only node with this hostname as online."""
        return [node["online"] for node in self.server.nodes(hostname)] == [True]

    def wait_until_connected(self, hostname: str, log: Callable[[], str]) -> None:
        """Wait until Headscale reports the node as online."""
        eventually(
            lambda: self.is_connected(hostname),
            f"{hostname} to be connected",
            details=log,
            timeout_s=RECONNECT_TIMEOUT_S,
        )

    def attempts_on_port_443(self, hostname: str) -> int:
        """Return how often the client has logged PORT_443_MESSAGE."""
        return self.log_reader(hostname)().count(PORT_443_MESSAGE)

    def log_reader(self, hostname: str) -> Callable[[], str]:
        """Return a function that returns the client's log."""
        return partial((self.folder / hostname / "tailscaled.log").read_text, errors="replace")

    def interrupt_headscale(self, outage_s: float) -> None:
        """Stop Headscale for some time, and start it again."""
        self.server.stop()
        end = time.monotonic() + outage_s
        eventually(lambda: time.monotonic() >= end, "the end of the outage", timeout_s=outage_s + 1.0)
        self.server.start()


@dataclass
class Pod:
    """The rendered pod: its workload, its tailscale container, and its `dns-watch`."""

    workload: Workload
    container: TailscaleContainer
    watch: DnsWatch

    @property
    def name(self) -> str:
        """The hostname of its node, and the name of its record."""
        return self.workload.name

    @property
    def address(self) -> str:
        """The address of its only node."""
        (node,) = self.workload.server.nodes(self.name)
        address: str = node["ipAddresses"][0]
        return address

    def wait_until_published(self) -> None:
        """Wait until the record has the address of the only node."""
        eventually(
            lambda: len(self.workload.node_ids) == 1 and self.workload.record_contents == [self.address],
            "the record to have the node's address",
            details=lambda: self.container.output() + self.watch.output(),
            timeout_s=RECONNECT_TIMEOUT_S,
        )


def start_pod(setup: Setup) -> Pod:
    """Run `cleanup`, the tailscale container and `dns-watch`, with the rendered settings."""
    (setup.folder / "root").mkdir()
    cloudflare = CloudflareSimulator()
    container = TailscaleContainer(
        setup.release,
        setup.folder / "root",
        hosts=(setup.folder / "hosts").read_text(),
        trust=(setup.folder / "trust/ca.pem").read_text(),
        authority=Authority(setup.folder),
        stack=setup.stack,
    )
    workload = setup.stack.enter_context(
        Workload(
            SETTINGS["TS_HOSTNAME"],
            server=setup.server,
            cloudflare=cloudflare,
            cloudflare_url=setup.stack.enter_context(serve(cloudflare)),
            folder=setup.folder,
        )
    )
    workload.key_file = container.key_file
    workload.command_prefix = with_service_account(container.account)
    names = ("DNS_CLEANUP", "HEADSCALE_USER", "NODE_POLICY", "SELF_HEAL", "TS_KUBE_SECRET")
    workload.environment |= {name: SETTINGS[name] for name in names} | container.api
    workload.environment["AUTHKEY_OUTPUT_PATH"] = str(container.key_file)
    # The client in the container creates the interface tailscale0, which is the default of this setting.
    del workload.environment["TAILSCALE_INTERFACE"]
    workload.run_cleanup()
    container.start()
    pod = Pod(workload, container, workload.start_dns_watch())
    setup.wait_until_connected(pod.name, container.output)
    pod.wait_until_published()
    return pod


def with_wrapper(release: Release, folder: Path) -> Release:
    """Return the release with WRAPPER in place of tailscaled."""
    wrapper = folder / "tailscaled"
    wrapper.write_text(WRAPPER.format(folder=folder, program=shlex.quote(str(release.tailscaled))))
    wrapper.chmod(0o755)
    return replace(release, tailscaled=wrapper)


@pytest.fixture
def setup(request: pytest.FixtureRequest) -> Iterator[Setup]:
    """Move this thread into a network namespace until the end of the test, and start Headscale and nginx there."""
    release: Release = request.param
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lc-", ignore_cleanup_errors=True)))
        namespace = stack.enter_context(network_for_tailscale("login-server"))
        for address in (CLUSTER_IP, INGRESS_IP):
            namespace.ip("address", "add", f"{address}/32", "dev", "lo")
        (folder / "server").mkdir()
        server = stack.enter_context(HeadscaleServer(release, folder / "server"))
        server.create_user(USER)
        start_proxy(server.url, folder, stack)
        yield Setup(release, with_wrapper(release, folder), server, folder, stack)


def start_proxy(headscale: str, folder: Path, stack: ExitStack) -> None:
    """Run nginx as the Service and the ingress controller, and write the hosts file and the certificate for clients."""
    proxy, trust = folder / "proxy", folder / "trust"
    proxy.mkdir()
    trust.mkdir()
    certificate, key = issue(INGRESS_NAME)
    (proxy / "tls.crt").write_text(certificate)
    (proxy / "tls.key").write_text(key)
    (trust / "ca.pem").write_text(certificate)
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{CLUSTER_IP} {SERVICE_NAME}\n{INGRESS_IP} {INGRESS_NAME}\n")
    configuration = NGINX.format(
        cluster_ip=CLUSTER_IP, ingress_ip=INGRESS_IP, headscale=headscale, locations=published_locations(headscale)
    )
    stack.callback(start_nginx(proxy, configuration).stop)


@pytest.mark.takes_minutes
@pytest.mark.parametrize("outage_s", [5, 25, 150])
def test_rendered_pod_reconnects_after_an_outage_of_headscale(setup: Setup, outage_s: int) -> None:
    """The pod reconnects without a restart of the container. Node, address and record stay the same."""
    pod = start_pod(setup)
    before = pod.workload.node_ids, pod.address, pod.workload.record_contents
    # After a restart, Headscale reports a node as offline until the node connects again.
    setup.interrupt_headscale(outage_s)
    setup.wait_until_connected(pod.name, pod.container.output)
    pod.watch.wait_for_next("pass.finished")
    assert (pod.workload.node_ids, pod.address, pod.workload.record_contents) == before
    assert pod.container.probe_passes("livenessProbe")
    assert pod.container.starts == 1


def test_rendered_pod_registers_again_after_its_node_was_deleted(setup: Setup) -> None:
    """`dns-watch` writes a new key. Then the liveness probe fails, so the kubelet restarts the container."""
    # The second node keeps the list of nodes non-empty. If the list is empty, `dns-watch` waits five minutes before it
    # treats a node as deleted.
    setup.join("http-address")
    pod = start_pod(setup)
    (deleted,) = pod.workload.node_ids
    setup.server.delete_node(deleted)
    container = pod.container
    eventually(
        lambda: not container.probe_passes("livenessProbe"),
        "the liveness probe to fail",
        details=pod.watch.output,
        timeout_s=CONFIRM_TIMEOUT_S,
    )
    container.stop()
    container.start()
    setup.wait_until_connected(pod.name, container.output)
    pod.watch.wait_for("node.returned")
    pod.wait_until_published()
    assert int(pod.workload.node_ids[0]) > int(deleted)
    assert container.probe_passes("livenessProbe")
    assert len(pod.watch.events_named("pre_auth_key.created")) == 1


def test_client_with_http_and_a_host_name_does_not_reconnect(setup: Setup) -> None:
    """Another client, whose URL has http and a private IP address, does reconnect."""
    for hostname in URLS:
        setup.join(hostname)
    attempts = setup.attempts_on_port_443("http-name")
    setup.interrupt_headscale(5)
    setup.wait_until_connected("http-address", setup.log_reader("http-address"))
    # Each further attempt fails, because nothing listens on port 443 of the Service.
    eventually(
        lambda: setup.attempts_on_port_443("http-name") >= attempts + 3,
        "further attempts of the client",
        details=setup.log_reader("http-name"),
        timeout_s=RECONNECT_TIMEOUT_S,
    )
    assert not setup.is_connected("http-name")
