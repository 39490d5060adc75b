"""The rendered nginx configuration, in a real nginx, asked from the VPN and from elsewhere."""

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
    Answer,
    Host,
    Network,
    eventually,
    network,
    process,
)
from tests.pod.rendering import DOMAIN, NEW, SERVICES, configuration, containers, pod_spec, rendered

NAME = f"{NEW[0]}.{DOMAIN}"
VPN_ADDRESSES = "100.64.0.5", "fd7a:115c:a1e0::5"
WITH_NGINX = [service for service in SERVICES if service != "freeipa"]


@dataclass
class Pod:
    """nginx and a stand-in for the application, in the pod's network."""

    network: Network
    tls: MountedSecret
    trust: Path
    log: Path
    application: Path
    nginx: int

    def ask(self, url: str, *, source: str, name: str = NAME, **options: object) -> Answer:
        """Ask at the pod's address on the VPN from one of its machines, else at its address in the cluster."""
        vpn = source in ON_THE_VPN
        to = (VPN_ADDRESSES if vpn else POD_SIDE)[":" in source]
        host = self.network.vpn if vpn else self.network.cluster
        return host.ask(url.replace("NAME", name), source=source, to=to, trust=str(self.trust), **options)

    def renew(self, name: str = NAME) -> str:
        """Replace the certificate as cert-manager and the kubelet do; the file with its authority."""
        certificate, key = issue(name)
        self.trust.write_text(certificate)
        self.tls.write_certificate(certificate, key, owner=101)
        return certificate


@contextmanager
def nginx(host: Host, service: str, folder: Path, tls: Path) -> Iterator[int]:
    """The service's nginx as its manifest starts it: same files, same places, same command, same user."""
    documents = rendered(service)
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
    # The folders' places are made in a view of the file system that nobody else has.
    places = (
        'mount -t tmpfs t /etc/nginx && mkdir /etc/nginx/service /etc/nginx/tls && mount --bind "$1" /etc/nginx/service'
    )
    places += ' && mount --bind "$2" /etc/nginx/tls && mount -t tmpfs -o mode=1777 t /tmp && shift 2 && exec "$@"'
    command = host.command(
        *("unshare", "--mount", "--propagation", "private", "sh", "-c", places, "sh", files, tls),
        *("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--bounding-set=-all", "--no-new-privs"),
        *container["command"],
    )
    with process(command, log) as running:

        def listening() -> bool:
            assert running.poll() is None, log.read_text()
            return not host.ask("http://127.0.0.1:9004/nginx").error

        eventually(listening, "nginx to listen")
        yield running.pid


@contextmanager
def application(host: Host, port: int, folder: Path) -> Iterator[None]:
    """The stand-in, listening."""
    with process(
        host.command(sys.executable, "-I", ROOT / "tests/pod/application.py", str(port)), folder / "application.log"
    ):
        eventually(lambda: not host.ask(f"http://127.0.0.1:{port}/").error, "the application to listen")
        yield


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """The pod that scripts/new-service makes."""
    needs("ip", "nginx", "openssl", "setpriv", "unshare")
    folder = tmp_path_factory.mktemp("pod")
    with network() as hosts:
        hosts.give_the_pod_an_address(*VPN_ADDRESSES)
        tls = MountedSecret(folder / "tls")
        pod = Pod(hosts, tls, folder / "trust.pem", folder / "nginx.log", folder / "application.log", 0)
        pod.renew()
        with application(hosts.pod, int(NEW[2]), folder), nginx(hosts.pod, NEW[0], folder, tls.folder) as pod.nginx:
            yield pod


@pytest.mark.parametrize("source", ON_THE_VPN)
def test_a_client_on_the_vpn_gets_the_application(source: str, pod: Pod) -> None:
    answer = pod.ask("https://NAME/page?x=1", source=source)
    assert (answer.status, answer.error) == (200, "")
    assert answer.seen["path"] == "/page?x=1"
    assert answer.seen["from"] == "127.0.0.1"


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("source", ELSEWHERE)
def test_a_client_from_elsewhere_is_refused(source: str, scheme: str, pod: Pod) -> None:
    """On 80 too: it is not even told where else to go."""
    answer = pod.ask(f"{scheme}://NAME/page", source=source)
    assert (answer.status, answer.error) == (403, "")
    assert "Location" not in answer.headers


def test_a_process_in_the_pod_is_not_on_the_vpn(pod: Pod) -> None:
    assert pod.network.pod.ask("https://127.0.0.1/").status == 403


@pytest.mark.parametrize("source", ON_THE_VPN[::2])
def test_http_goes_to_https(source: str, pod: Pod) -> None:
    answer = pod.ask("http://NAME/page?x=1", source=source)
    assert (answer.status, answer.headers["Location"]) == (301, f"https://{NAME}/page?x=1")


@pytest.mark.parametrize("source", ON_THE_VPN[::2])
def test_the_application_learns_who_asks_and_how_and_cannot_be_lied_to(source: str, pod: Pod) -> None:
    lies = {
        "X-Real-IP": "100.64.0.1",
        "X-Forwarded-For": "100.64.0.1, 10.0.0.1",
        "X-Forwarded-Proto": "http",
        "X-Forwarded-Host": "evil.example.com",
        "X-Forwarded-Port": "1",
        "Forwarded": "for=100.64.0.1",
    }
    answer = pod.ask("https://NAME/", source=source, headers=lies)
    seen = [(name, value) for name, value in answer.seen["headers"] if name not in {"accept-encoding", "connection"}]
    assert sorted(seen) == [
        ("host", NAME),
        ("x-forwarded-for", source),
        ("x-forwarded-host", NAME),
        ("x-forwarded-port", "443"),
        ("x-forwarded-proto", "https"),
        ("x-real-ip", source),
    ]


def test_a_websocket_passes(pod: Pod) -> None:
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    answer = pod.ask("https://NAME/socket", source=ON_THE_VPN[0], headers=upgrade, echo="there and back")
    assert (answer.status, answer.echo) == (101, "there and back")


@pytest.mark.parametrize(
    ("version", "taken"), [("TLSv1", False), ("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)]
)
def test_no_tls_older_than_1_2(version: str, taken: bool, pod: Pod) -> None:
    answer = pod.ask("https://NAME/", source=ON_THE_VPN[0], version=version)
    if taken:
        assert (answer.status, answer.tls) == (200, version.replace("_", "."))
    else:
        assert "protocol version" in answer.error.lower().replace("_", " ")


def test_a_renewed_certificate_is_served_without_a_restart(pod: Pod) -> None:
    """Nothing is told to nginx: the files change, and the next client gets the new one."""
    children = Path(f"/proc/{pod.nginx}/task/{pod.nginx}/children")
    workers = children.read_text().split()
    before = pod.ask("https://NAME/", source=ON_THE_VPN[0])
    pod.renew()
    after = pod.ask("https://NAME/", source=ON_THE_VPN[0])
    assert (before.status, after.status) == (200, 200)
    assert before.certificate != after.certificate
    assert workers
    assert children.read_text().split() == workers


def test_the_kubelet_is_told_whether_nginx_and_the_application_answer_and_nothing_else(pod: Pod) -> None:
    kubelet = pod.network.cluster
    for address in (POD_SIDE[0], f"[{POD_SIDE[1]}]"):
        assert kubelet.ask(f"http://{address}:9004/nginx").status == 204
        assert kubelet.ask(f"http://{address}:9004/application").status == 204
        for path in ("", "application/page", "probe"):
            assert kubelet.ask(f"http://{address}:9004/{path}").status == 404


def test_nothing_passes_between_the_application_and_who_asks_for_its_health(pod: Pod) -> None:
    """Anybody in the cluster may ask: the allow list does not hold on that port."""
    before = len(pod.application.read_text().splitlines())
    answer = pod.network.cluster.ask(
        f"http://{POD_SIDE[0]}:9004/application?back_url=1",
        method="POST",
        body="name=admin",
        headers={"Cookie": "session=mine", "X-Forwarded-For": "100.64.0.9", "Upgrade": "websocket"},
    )
    assert (answer.status, answer.body, "Set-Cookie" in answer.headers) == (204, "", False)
    lines = pod.application.read_text().splitlines()[before:]
    (seen,) = [json.loads(line) for line in lines if line.startswith("{")]
    assert (seen["method"], seen["path"], seen["body"]) == ("GET", "/", "")
    assert [name for name, _ in seen["headers"] if name != "connection"] == ["host"]


def test_the_application_is_reached_through_nginx_only(pod: Pod) -> None:
    for host, addresses in ((pod.network.cluster, POD_SIDE), (pod.network.vpn, VPN_ADDRESSES)):
        for address in addresses:
            at = f"[{address}]" if ":" in address else address
            assert "ConnectionRefused" in host.ask(f"http://{at}:{NEW[2]}/").error


def test_an_application_that_is_down_fails_its_own_probe_and_not_nginx_s(tmp_path: Path) -> None:
    needs("ip", "nginx", "openssl", "setpriv", "unshare")
    with network() as hosts, nginx(hosts.pod, NEW[0], tmp_path, MountedSecret(tmp_path / "tls").folder):
        assert hosts.cluster.ask(f"http://{POD_SIDE[0]}:9004/application").status == 500
        assert hosts.cluster.ask(f"http://{POD_SIDE[0]}:9004/nginx").status == 204


@pytest.mark.parametrize("service", WITH_NGINX)
def test_nginx_takes_every_service_s_configuration(service: str, tmp_path: Path) -> None:
    """And says nothing about it: a warning today is a refusal in a later version."""
    needs("ip", "nginx", "openssl", "setpriv", "unshare")
    with network() as hosts, nginx(hosts.pod, service, tmp_path, MountedSecret(tmp_path / "tls").folder):
        assert (tmp_path / "nginx.log").read_text() == ""


def test_ollama_is_called_by_a_name_that_it_answers_to(tmp_path: Path) -> None:
    """On localhost it refuses every other."""
    needs("ip", "nginx", "openssl", "setpriv", "unshare")
    tls = MountedSecret(tmp_path / "tls")
    tls.write_certificate(*issue(NAME), owner=101)
    with (
        network() as hosts,
        application(hosts.pod, 11434, tmp_path),
        nginx(hosts.pod, "ollama", tmp_path, tls.folder),
    ):
        hosts.give_the_pod_an_address(*VPN_ADDRESSES)
        asked = {"source": ON_THE_VPN[0], "to": VPN_ADDRESSES[0]}
        eventually(lambda: hosts.vpn.ask(f"https://{NAME}/", **asked).status == 200, "the address to be reached")
        answer = hosts.vpn.ask(f"https://{NAME}/api/tags", **asked)
        assert [value for name, value in answer.seen["headers"] if name == "host"] == ["localhost"]


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
"""A server as the controller writes one with `ssl-redirect` off, as far as it matters here."""


def test_the_internal_controller_s_snippets_let_the_vpn_in_and_nobody_else(tmp_path: Path) -> None:
    needs("ip", "nginx", "openssl")
    snippets = configuration(rendered("ingress/internal"), "nginx-config")
    MountedSecret(tmp_path / "tls").write_certificate(*issue(NAME), owner=0)
    file = tmp_path / "nginx.conf"
    file.write_text(INGRESS.format(folder=tmp_path, http=snippets["http-snippets"], server=snippets["server-snippets"]))
    with (
        network() as hosts,
        process(hosts.pod.command("nginx", "-e", "stderr", "-c", file, "-g", "daemon off;"), tmp_path / "log"),
    ):
        hosts.give_the_pod_an_address(*VPN_ADDRESSES)
        eventually(lambda: not hosts.pod.ask("http://127.0.0.1/").error, "nginx to listen")
        for source in ON_THE_VPN[::2]:
            at = {"source": source, "to": VPN_ADDRESSES[":" in source]}
            assert hosts.vpn.ask(f"https://{NAME}/", **at).status == 200
            plain = hosts.vpn.ask(f"http://{NAME}/page", **at)
            assert (plain.status, plain.headers["Location"]) == (301, f"https://{NAME}/page")
        for source in CLUSTER_SIDE:
            at = {"source": source, "to": POD_SIDE[":" in source]}
            assert [hosts.cluster.ask(f"{scheme}://{NAME}/", **at).status for scheme in ("http", "https")] == [403, 403]
