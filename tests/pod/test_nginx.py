"""Run the rendered nginx configuration in a real nginx, with clients on the VPN and elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.pod.certificates import MountedSecret, issue
from tests.pod.conftest import needs
from tests.pod.network import (
    CLUSTER_SIDE,
    ELSEWHERE,
    ON_THE_VPN,
    POD_SIDE,
    ROOT,
    Host,
    Network,
    Response,
    eventually,
    network,
    process,
)
from tests.pod.rendering import DOMAIN, GENERATED, WORKLOADS, configuration, containers, pod_spec, rendered

NAME = f"{GENERATED[0]}.{DOMAIN}"
VPN_ADDRESSES = "100.64.0.5", "fd7a:115c:a1e0::5"
WITH_NGINX = [workload for workload in WORKLOADS if workload != "freeipa"]


@dataclass
class Pod:
    """nginx and the stand-in application in the pod's network namespace."""

    network: Network
    tls: MountedSecret
    trust: Path
    log: Path
    application: Path
    nginx: int

    def request(self, url: str, *, source: str, name: str = NAME, **options: object) -> Response:
        """Send a request from a source address: to the pod's VPN address from the VPN, else to its cluster address."""
        vpn = source in ON_THE_VPN
        to = (VPN_ADDRESSES if vpn else POD_SIDE)[":" in source]
        host = self.network.vpn if vpn else self.network.cluster
        return host.request(url.replace("NAME", name), source=source, to=to, trust=str(self.trust), **options)

    def renew(self, name: str = NAME) -> str:
        """Replace the certificate as cert-manager and the kubelet do, and return the new one."""
        certificate, key = issue(name)
        self.trust.write_text(certificate)
        self.tls.write_certificate(certificate, key, owner=101)
        return certificate


@contextmanager
def nginx(host: Host, workload: str, folder: Path, tls: Path) -> Iterator[int]:
    """Run nginx with the files, paths, command and user of the manifest, and yield its process id."""
    documents = rendered(workload)
    spec = pod_spec(documents)
    container = containers(spec)["nginx-tls"]
    files = folder / "configuration"
    files.mkdir()
    for name, text in configuration(documents, "nginx").items():
        (files / name).write_text(text)
    host.set_sysctls(spec["securityContext"]["sysctls"])
    log = folder / "nginx.log"
    log.touch()
    log.chmod(0o666)
    user = str(container["securityContext"]["runAsUser"])
    # The paths are mounted in a private mount namespace.
    mounts = 'mount --bind "$1" /etc/nginx && mount -t tmpfs t /run && mkdir -p /run/secrets/tls'
    mounts += ' && mount --bind "$2" /run/secrets/tls && mount -t tmpfs -o mode=1777 t /tmp && shift 2 && exec "$@"'
    command = host.command(
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", mounts, "sh", files, tls),
        *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--bounding-set=-all", "--no-new-privs"),
        *container["command"],
    )
    with process(command, log) as running:

        def listening() -> bool:
            assert running.poll() is None, log.read_text()
            return not host.request("http://127.0.0.1:9004/nginx").error

        eventually(listening, "nginx to listen")
        yield running.pid


@contextmanager
def application(host: Host, port: int, folder: Path) -> Iterator[None]:
    """Run the stand-in application."""
    with process(
        host.command(sys.executable, "-I", ROOT / "tests/pod/application.py", str(port)), folder / "application.log"
    ):
        eventually(lambda: not host.request(f"http://127.0.0.1:{port}/").error, "the application to listen")
        yield


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """Run the pod of the workload that scripts/new-service generates."""
    needs("ip", "nginx", "openssl", "setpriv", "unshare")
    folder = tmp_path_factory.mktemp("pod")
    with network() as hosts:
        hosts.add_vpn_addresses(*VPN_ADDRESSES)
        tls = MountedSecret(folder / "tls")
        pod = Pod(hosts, tls, folder / "trust.pem", folder / "nginx.log", folder / "application.log", 0)
        pod.renew()
        with (
            application(hosts.pod, int(GENERATED[2]), folder),
            nginx(hosts.pod, GENERATED[0], folder, tls.folder) as pod.nginx,
        ):
            yield pod


@pytest.mark.parametrize("source", ON_THE_VPN)
def test_vpn_client_reaches_the_application(source: str, pod: Pod) -> None:
    response = pod.request("https://NAME/page?x=1", source=source)
    assert (response.status, response.error) == (200, "")
    assert response.forwarded["path"] == "/page?x=1"
    assert response.forwarded["from"] == "127.0.0.1"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("source", ELSEWHERE)
def test_other_client_gets_403_without_a_redirect(source: str, scheme: str, pod: Pod) -> None:
    response = pod.request(f"{scheme}://NAME/page", source=source)
    assert (response.status, response.error) == (403, "")
    assert "Location" not in response.headers


def test_request_from_within_the_pod_gets_403(pod: Pod) -> None:
    assert pod.network.pod.request("https://127.0.0.1/").status == 403


@pytest.mark.parametrize("source", ON_THE_VPN[::2])
def test_http_is_redirected_to_https(source: str, pod: Pod) -> None:
    response = pod.request("http://NAME/page?x=1", source=source)
    assert (response.status, response.headers["Location"]) == (301, f"https://{NAME}/page?x=1")


@pytest.mark.parametrize("source", ON_THE_VPN[::2])
def test_forwarding_headers_of_the_client_are_replaced(source: str, pod: Pod) -> None:
    forged = {
        "X-Real-IP": "100.64.0.1",
        "X-Forwarded-For": "100.64.0.1, 10.0.0.1",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.example.com",
        "X-Forwarded-Port": "1",
        "Forwarded": "for=100.64.0.1",
    }
    response = pod.request("https://NAME/", source=source, headers=forged)
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
    response = pod.request("https://NAME/socket", source=ON_THE_VPN[0], headers=upgrade, echo="some data")
    assert (response.status, response.echo) == (101, "some data")


@pytest.mark.parametrize(
    ("version", "is_accepted"), [("TLSv1", False), ("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)]
)
def test_tls_1_2_and_newer_are_accepted(version: str, is_accepted: bool, pod: Pod) -> None:
    response = pod.request("https://NAME/", source=ON_THE_VPN[0], version=version)
    if is_accepted:
        assert (response.status, response.tls) == (200, version.replace("_", "."))
    else:
        assert "protocol version" in response.error.lower().replace("_", " ")


def test_renewed_certificate_is_served_without_a_reload(pod: Pod) -> None:
    """Replace the files only, and check that the next client gets the new certificate from the same workers."""
    children = Path(f"/proc/{pod.nginx}/task/{pod.nginx}/children")
    workers = children.read_text().split()
    before = pod.request("https://NAME/", source=ON_THE_VPN[0])
    pod.renew()
    after = pod.request("https://NAME/", source=ON_THE_VPN[0])
    assert (before.status, after.status) == (200, 200)
    assert before.certificate != after.certificate
    assert workers
    assert children.read_text().split() == workers


def test_health_port_serves_only_the_health_checks(pod: Pod) -> None:
    kubelet = pod.network.cluster
    for address in (POD_SIDE[0], f"[{POD_SIDE[1]}]"):
        assert kubelet.request(f"http://{address}:9004/nginx").status == 204
        assert kubelet.request(f"http://{address}:9004/application").status == 204
        for path in ("", "application/page", "probe"):
            assert kubelet.request(f"http://{address}:9004/{path}").status == 404


def test_health_check_forwards_neither_the_request_nor_the_response(pod: Pod) -> None:
    """The health port has no allow list, so any pod in the cluster can connect."""
    before = len(pod.application.read_text().splitlines())
    response = pod.network.cluster.request(
        f"http://{POD_SIDE[0]}:9004/application?back_url=1",
        method="POST",
        body="name=admin",
        headers={"Cookie": "session=1", "X-Forwarded-For": "100.64.0.9", "Upgrade": "websocket"},
    )
    assert (response.status, response.body, "Set-Cookie" in response.headers) == (204, "", False)
    lines = pod.application.read_text().splitlines()[before:]
    (request,) = [json.loads(line) for line in lines if line.startswith("{")]
    assert (request["method"], request["path"], request["body"]) == ("GET", "/", "")
    assert [name for name, _ in request["headers"] if name != "connection"] == ["host"]


def test_application_port_is_not_reachable_from_outside(pod: Pod) -> None:
    for host, addresses in ((pod.network.cluster, POD_SIDE), (pod.network.vpn, VPN_ADDRESSES)):
        for address in addresses:
            at = f"[{address}]" if ":" in address else address
            assert "ConnectionRefused" in host.request(f"http://{at}:{GENERATED[2]}/").error


def test_stopped_application_fails_its_own_probe_but_not_the_probe_of_nginx(tmp_path: Path) -> None:
    needs("ip", "nginx", "openssl", "setpriv", "unshare")
    with network() as hosts, nginx(hosts.pod, GENERATED[0], tmp_path, MountedSecret(tmp_path / "tls").folder):
        assert hosts.cluster.request(f"http://{POD_SIDE[0]}:9004/application").status == 500
        assert hosts.cluster.request(f"http://{POD_SIDE[0]}:9004/nginx").status == 204


@pytest.mark.parametrize("workload", WITH_NGINX)
def test_nginx_accepts_the_configuration_without_warnings(workload: str, tmp_path: Path) -> None:
    needs("ip", "nginx", "openssl", "setpriv", "unshare")
    with network() as hosts, nginx(hosts.pod, workload, tmp_path, MountedSecret(tmp_path / "tls").folder):
        assert (tmp_path / "nginx.log").read_text() == ""


def test_requests_to_ollama_have_the_host_header_localhost(tmp_path: Path) -> None:
    """Ollama rejects other Host headers when it listens on localhost."""
    needs("ip", "nginx", "openssl", "setpriv", "unshare")
    tls = MountedSecret(tmp_path / "tls")
    tls.write_certificate(*issue(NAME), owner=101)
    with (
        network() as hosts,
        application(hosts.pod, 11434, tmp_path),
        nginx(hosts.pod, "ollama", tmp_path, tls.folder),
    ):
        hosts.add_vpn_addresses(*VPN_ADDRESSES)
        options = {"source": ON_THE_VPN[0], "to": VPN_ADDRESSES[0]}
        eventually(lambda: hosts.vpn.request(f"https://{NAME}/", **options).status == 200, "the pod to be reachable")
        response = hosts.vpn.request(f"https://{NAME}/api/tags", **options)
        assert [value for name, value in response.forwarded["headers"] if name == "host"] == ["localhost"]


INGRESS = """
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
"""The relevant parts of the configuration that the ingress controller generates with `ssl-redirect` off."""


def test_snippets_of_the_internal_controller_allow_vpn_clients_only(tmp_path: Path) -> None:
    needs("ip", "nginx", "openssl")
    snippets = configuration(rendered("ingress/internal"), "nginx-config")
    MountedSecret(tmp_path / "tls").write_certificate(*issue(NAME), owner=0)
    file = tmp_path / "nginx.conf"
    file.write_text(INGRESS.format(folder=tmp_path, http=snippets["http-snippets"], server=snippets["server-snippets"]))
    with (
        network() as hosts,
        process(hosts.pod.command("nginx", "-e", "stderr", "-c", file, "-g", "daemon off;"), tmp_path / "log"),
    ):
        hosts.add_vpn_addresses(*VPN_ADDRESSES)
        eventually(lambda: not hosts.pod.request("http://127.0.0.1/").error, "nginx to listen")
        for source in ON_THE_VPN[::2]:
            at = {"source": source, "to": VPN_ADDRESSES[":" in source]}
            assert hosts.vpn.request(f"https://{NAME}/", **at).status == 200
            redirect = hosts.vpn.request(f"http://{NAME}/page", **at)
            assert (redirect.status, redirect.headers["Location"]) == (301, f"https://{NAME}/page")
        for source in CLUSTER_SIDE:
            at = {"source": source, "to": POD_SIDE[":" in source]}
            assert [hosts.cluster.request(f"{scheme}://{NAME}/", **at).status for scheme in ("http", "https")] == [
                403,
                403,
            ]
        # A provider's network, or that of the pods, can have addresses in the same range.
        hosts.vpn.ip("route", "add", POD_SIDE[0], "dev", "vpn0")
        hosts.vpn.ip("route", "add", POD_SIDE[1], "via", "fe80::1", "dev", "vpn0")
        for source in ON_THE_VPN[::2]:
            at = {"source": source, "to": POD_SIDE[":" in source]}
            assert [hosts.vpn.request(f"{scheme}://{NAME}/", **at).status for scheme in ("http", "https")] == [403, 403]
