"""Run nginx with the rendered configuration, and send requests from the VPN and from other networks."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.image.tools import require_commands
from tests.pod.certificates import MountedSecret, issue
from tests.pod.network import (
    CLUSTER_NODE_ADDRESSES,
    OTHER_SOURCES,
    POD_ADDRESSES,
    ROOT,
    VPN_CLIENT_ADDRESSES,
    VPN_SOURCES,
    Host,
    Network,
    Response,
    create_network,
    same_family,
)
from tests.pod.rendering import (
    DOMAIN,
    GENERATED_NAME,
    GENERATED_PORT,
    WORKLOADS,
    config_map_data,
    containers,
    manifests_of,
    pod_spec,
)
from tests.real.programs import BackgroundProcess, eventually

NAME = f"{GENERATED_NAME}.{DOMAIN}"
VPN_ADDRESSES = "100.64.0.5", "fd7a:115c:a1e0::5"
"""The pod's addresses on the VPN."""
NGINX_GROUP = 101
"""The group of nginx in its image."""
WORKLOADS_WITH_NGINX = [workload for workload in WORKLOADS if workload != "freeipa"]


@pytest.fixture(scope="module", autouse=True)
def _required_programs() -> None:
    require_commands("ip", "nginx", "openssl", "setpriv", "unshare")


@dataclass
class Pod:
    """nginx and the stand-in application in the pod's network namespace.

    Attributes:
        trust: the file with the certificate that clients trust.
        application_log: the file with the requests that the application received.
        nginx: the process id of nginx.
    """

    network: Network
    tls: MountedSecret
    trust: Path
    application_log: Path
    nginx: int

    def request(self, url: str, *, source: str, **options: object) -> Response:
        """Send a request from a source address.

        Clients on the VPN connect to the pod's VPN address, other clients to its address in the cluster network.
        """
        is_on_vpn = source in VPN_SOURCES
        to = same_family(VPN_ADDRESSES if is_on_vpn else POD_ADDRESSES, source)
        host = self.network.vpn if is_on_vpn else self.network.cluster
        return host.request(url, source=source, to=to, trust=str(self.trust), **options)

    def renew_certificate(self) -> None:
        """Replace the certificate, as cert-manager and the kubelet do."""
        certificate, key = issue(NAME)
        self.trust.write_text(certificate)
        self.tls.write_certificate(certificate, key, group=NGINX_GROUP)


@contextmanager
def nginx(host: Host, workload: str, folder: Path, tls: Path) -> Iterator[int]:
    """Run nginx with the files, paths, command and user of the manifest, and yield its process id."""
    documents = manifests_of(workload)
    spec = pod_spec(documents)
    container = containers(spec)["nginx-tls"]
    files = folder / "configuration"
    files.mkdir()
    for name, text in config_map_data(documents, "nginx").items():
        (files / name).write_text(text)
    host.set_sysctls(spec["securityContext"]["sysctls"])
    log = folder / "nginx.log"
    log.touch()
    log.chmod(0o666)
    user = str(container["securityContext"]["runAsUser"])
    # The files appear at the paths of the container in a private mount namespace.
    mounts = 'mount --bind "$1" /etc/nginx && mount -t tmpfs t /run && mkdir -p /run/secrets/tls'
    mounts += ' && mount --bind "$2" /run/secrets/tls && mount -t tmpfs -o mode=1777 t /tmp && shift 2 && exec "$@"'
    command = host.command(
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", mounts, "sh", files, tls),
        *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--bounding-set=-all", "--no-new-privs"),
        *container["command"],
    )
    with BackgroundProcess(command, log=log, environment=os.environ, folder=folder) as running:

        def listening() -> bool:
            assert running.exit_status is None, running.output()
            return not host.request("http://127.0.0.1:9004/nginx").error

        eventually(listening, "nginx to listen")
        yield running.pid


@contextmanager
def application(host: Host, port: int, folder: Path) -> Iterator[None]:
    """Run the stand-in application for the duration of the block."""
    command = host.command(sys.executable, "-I", ROOT / "tests/pod/application.py", str(port))
    with BackgroundProcess(command, log=folder / "application.log", environment=os.environ, folder=folder):
        eventually(lambda: not host.request(f"http://127.0.0.1:{port}/").error, "the application to listen")
        yield


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """Run the pod of the workload that scripts/new-service generates."""
    folder = tmp_path_factory.mktemp("pod")
    with create_network() as hosts:
        hosts.add_vpn_addresses(*VPN_ADDRESSES)
        tls = MountedSecret(folder / "tls")
        pod = Pod(hosts, tls, folder / "trust.pem", folder / "application.log", 0)
        pod.renew_certificate()
        with (
            application(hosts.pod, GENERATED_PORT, folder),
            nginx(hosts.pod, GENERATED_NAME, folder, tls.folder) as pod.nginx,
        ):
            yield pod


@pytest.mark.parametrize("source", VPN_SOURCES)
def test_vpn_client_reaches_the_application(source: str, pod: Pod) -> None:
    response = pod.request(f"https://{NAME}/page?x=1", source=source)
    assert (response.status, response.error) == (200, "")
    assert response.forwarded["path"] == "/page?x=1"
    assert response.forwarded["from"] == "127.0.0.1"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("source", OTHER_SOURCES)
def test_client_outside_the_vpn_gets_403_without_a_redirect(source: str, scheme: str, pod: Pod) -> None:
    response = pod.request(f"{scheme}://{NAME}/page", source=source)
    assert (response.status, response.error) == (403, "")
    assert "Location" not in response.headers


def test_request_from_within_the_pod_gets_403(pod: Pod) -> None:
    assert pod.network.pod.request("https://127.0.0.1/").status == 403


@pytest.mark.parametrize("source", VPN_CLIENT_ADDRESSES)
def test_http_is_redirected_to_https(source: str, pod: Pod) -> None:
    response = pod.request(f"http://{NAME}/page?x=1", source=source)
    assert (response.status, response.headers["Location"]) == (301, f"https://{NAME}/page?x=1")


@pytest.mark.parametrize("source", VPN_CLIENT_ADDRESSES)
def test_forwarding_headers_of_the_client_are_replaced(source: str, pod: Pod) -> None:
    forged = {
        "X-Real-IP": "100.64.0.1",
        "X-Forwarded-For": "100.64.0.1, 10.0.0.1",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.example.com",
        "X-Forwarded-Port": "1",
        "Forwarded": "for=100.64.0.1",
    }
    response = pod.request(f"https://{NAME}/", source=source, headers=forged)
    ignored = {"accept-encoding", "connection"}
    assert sorted((name, value) for name, value in response.forwarded["headers"] if name not in ignored) == [
        ("host", NAME),
        ("x-forwarded-for", source),
        ("x-forwarded-host", NAME),
        ("x-forwarded-port", "443"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", source),
    ]


def test_websocket_upgrade_is_forwarded(pod: Pod) -> None:
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    response = pod.request(f"https://{NAME}/socket", source=VPN_CLIENT_ADDRESSES[0], headers=upgrade, echo="some data")
    assert (response.status, response.echo) == (101, "some data")


@pytest.mark.parametrize(
    ("version", "is_accepted"), [("TLSv1", False), ("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)]
)
def test_tls_1_2_and_newer_are_accepted(version: str, is_accepted: bool, pod: Pod) -> None:
    response = pod.request(f"https://{NAME}/", source=VPN_CLIENT_ADDRESSES[0], version=version)
    if is_accepted:
        assert (response.status, response.tls) == (200, version.replace("_", "."))
    else:
        assert "protocol version" in response.error.lower().replace("_", " ")


def test_renewed_certificate_is_served_without_a_reload(pod: Pod) -> None:
    """The kubelet replaces the files without notifying nginx. The worker processes of nginx stay the same."""
    children = Path(f"/proc/{pod.nginx}/task/{pod.nginx}/children")
    workers = children.read_text().split()
    before = pod.request(f"https://{NAME}/", source=VPN_CLIENT_ADDRESSES[0])
    pod.renew_certificate()
    after = pod.request(f"https://{NAME}/", source=VPN_CLIENT_ADDRESSES[0])
    assert (before.status, after.status) == (200, 200)
    assert before.certificate != after.certificate
    assert workers
    assert children.read_text().split() == workers


def test_health_port_serves_only_the_health_checks(pod: Pod) -> None:
    kubelet = pod.network.cluster
    for address in (POD_ADDRESSES[0], f"[{POD_ADDRESSES[1]}]"):
        assert kubelet.request(f"http://{address}:9004/nginx").status == 204
        assert kubelet.request(f"http://{address}:9004/application").status == 204
        for path in ("", "application/page", "probe"):
            assert kubelet.request(f"http://{address}:9004/{path}").status == 404


def test_health_check_forwards_neither_the_request_nor_the_response(pod: Pod) -> None:
    """The health port has no allow list, so any pod in the cluster can connect."""
    before = len(pod.application_log.read_text().splitlines())
    response = pod.network.cluster.request(
        f"http://{POD_ADDRESSES[0]}:9004/application?x=1",
        method="POST",
        body="data",
        headers={"Cookie": "session=1", "X-Forwarded-For": "100.64.0.9", "Upgrade": "websocket"},
    )
    assert (response.status, response.body, "Set-Cookie" in response.headers) == (204, "", False)
    lines = pod.application_log.read_text().splitlines()[before:]
    (request,) = [json.loads(line) for line in lines if line.startswith("{")]
    assert (request["method"], request["path"], request["body"]) == ("GET", "/", "")
    assert [name for name, _ in request["headers"] if name != "connection"] == ["host"]


def test_application_port_is_not_reachable_from_outside(pod: Pod) -> None:
    for host, addresses in ((pod.network.cluster, POD_ADDRESSES), (pod.network.vpn, VPN_ADDRESSES)):
        for address in addresses:
            url_host = f"[{address}]" if ":" in address else address
            assert "ConnectionRefused" in host.request(f"http://{url_host}:{GENERATED_PORT}/").error


def test_stopped_application_fails_its_own_probe_but_not_the_probe_of_nginx(tmp_path: Path) -> None:
    with create_network() as hosts, nginx(hosts.pod, GENERATED_NAME, tmp_path, MountedSecret(tmp_path / "tls").folder):
        assert hosts.cluster.request(f"http://{POD_ADDRESSES[0]}:9004/application").status == 500
        assert hosts.cluster.request(f"http://{POD_ADDRESSES[0]}:9004/nginx").status == 204


@pytest.mark.parametrize("workload", WORKLOADS_WITH_NGINX)
def test_nginx_accepts_the_configuration_without_warnings(workload: str, tmp_path: Path) -> None:
    with create_network() as hosts, nginx(hosts.pod, workload, tmp_path, MountedSecret(tmp_path / "tls").folder):
        assert (tmp_path / "nginx.log").read_text() == ""


CONTROLLER_CONFIGURATION = """
worker_processes 1;
error_log stderr warn;
pid {folder}/nginx.pid;
events {{ }}
http {{
    access_log off;
    {http}
    server {{
        listen 80;
        listen [::]:80;
        listen 443 ssl;
        listen [::]:443 ssl;
        ssl_certificate {folder}/tls/tls.crt;
        ssl_certificate_key {folder}/tls/tls.key;
        {server}
        location / {{
            return 200;
        }}
    }}
}}
"""
"""A short version of the configuration that the ingress controller generates with `ssl-redirect: false`."""


def test_snippets_of_the_internal_controller_allow_vpn_clients_only(tmp_path: Path) -> None:
    snippets = config_map_data(manifests_of("ingress/internal"), "nginx-config")
    MountedSecret(tmp_path / "tls").write_certificate(*issue(NAME), group=0)
    file = tmp_path / "nginx.conf"
    file.write_text(
        CONTROLLER_CONFIGURATION.format(
            folder=tmp_path, http=snippets["http-snippets"], server=snippets["server-snippets"]
        )
    )
    with (
        create_network() as hosts,
        BackgroundProcess(
            hosts.pod.command("nginx", "-e", "stderr", "-c", file, "-g", "daemon off;"),
            log=tmp_path / "log",
            environment=os.environ,
            folder=tmp_path,
        ),
    ):
        hosts.add_vpn_addresses(*VPN_ADDRESSES)
        eventually(lambda: not hosts.pod.request("http://127.0.0.1/").error, "nginx to listen")
        for source in VPN_CLIENT_ADDRESSES:
            route = {"source": source, "to": same_family(VPN_ADDRESSES, source)}
            assert hosts.vpn.request(f"https://{NAME}/", **route).status == 200
            redirect = hosts.vpn.request(f"http://{NAME}/page", **route)
            assert (redirect.status, redirect.headers["Location"]) == (301, f"https://{NAME}/page")
        for source in CLUSTER_NODE_ADDRESSES:
            route = {"source": source, "to": same_family(POD_ADDRESSES, source)}
            for scheme in ("http", "https"):
                assert hosts.cluster.request(f"{scheme}://{NAME}/", **route).status == 403
        # If the cluster network overlaps with the VPN prefixes, another pod can have an address inside them. nginx
        # refuses its requests, because they arrive at nginx's address in the cluster network.
        hosts.vpn.ip("route", "add", POD_ADDRESSES[0], "dev", "vpn0")
        hosts.vpn.ip("route", "add", POD_ADDRESSES[1], "via", "fe80::1", "dev", "vpn0")
        for source in VPN_CLIENT_ADDRESSES:
            route = {"source": source, "to": same_family(POD_ADDRESSES, source)}
            for scheme in ("http", "https"):
                assert hosts.vpn.request(f"{scheme}://{NAME}/", **route).status == 403
