"""Test the URL of the login server in every manifest: tailscale must be able to reconnect after Headscale restarts.

With some URLs, tailscale cannot reconnect. tests/real/test_login_server.py shows this with real programs.
"""

from __future__ import annotations

import json
import re
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import pytest

from tests.pod.rendering import (
    INGRESS_CONTROLLERS,
    OTHER_FOLDERS,
    SUPPORT_FOLDERS,
    VARIANTS,
    WORKLOADS,
    Document,
    Variant,
    containers,
    environment,
    of_kind,
    pod_spec,
    rendered,
)

PRIVATE_NETWORKS = [
    ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fc00::/7", "::1")
]
"""The networks for which netip.Addr.IsPrivate or IsLoopback of Go is true."""


def login_servers(documents: list[Document]) -> list[str]:
    """Return the URLs of all --login-server options in the documents."""
    return re.findall(r'--login-server[= ]\\?"?([^\s"\\]+)', json.dumps(documents))


def can_reconnect(url: str) -> bool:
    """Return True if tailscale reconnects to a login server with this URL.

    After its first connection to an http URL, tailscale connects to port 443 instead of the port in the URL, unless the
    host is a private address or localhost. Source: control/ts2021/client.go of tailscale 1.102.3.
    """
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        address = ip_address(parts.hostname or "")
    except ValueError:
        return False
    return any(address in network for network in PRIVATE_NETWORKS if network.version == address.version)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://headscale.example.com", True),
        ("https://headscale.headscale.svc.cluster.local:8443", True),
        ("http://10.96.0.20:8080", True),
        ("http://[fd00::20]:8080", True),
        ("http://headscale.headscale.svc.cluster.local:8080", False),
        ("http://headscale:8080", False),
        ("http://headscale.example.com", False),
        ("http://192.0.2.1:8080", False),
        ("http://100.64.0.1:8080", False),
        ("headscale.example.com", False),
    ],
)
def test_can_reconnect_classifies_urls(url: str, expected: bool) -> None:
    documents = [{"data": {"TS_EXTRA_ARGS": f"--accept-routes --login-server={url} --reset"}}]
    assert login_servers(documents) == [url]
    assert can_reconnect(url) is expected


@pytest.mark.parametrize(
    ("name", "variant"), [*((name, "native") for name in (*OTHER_FOLDERS, *SUPPORT_FOLDERS)), *VARIANTS]
)
def test_tailscale_can_reconnect_to_the_login_server(name: str, variant: Variant) -> None:
    """Only the workloads and the ingress controllers have a login server."""
    urls = login_servers(rendered(name, variant))
    assert bool(urls) == (name in (*WORKLOADS, *INGRESS_CONTROLLERS))
    assert [url for url in urls if not can_reconnect(url)] == []


@pytest.mark.parametrize("name", WORKLOADS)
def test_external_controller_publishes_the_login_server_of_the_pods(name: str) -> None:
    documents = rendered(name)
    options = environment(containers(pod_spec(documents))["tailscale"], documents)["TS_EXTRA_ARGS"].split()
    (url,) = [option.removeprefix("--login-server=") for option in options if option.startswith("--login-server=")]
    external = rendered("ingress/external")
    (ingress,) = of_kind(external, "Ingress")
    (certificate,) = of_kind(external, "Certificate")
    (tls,) = ingress["spec"]["tls"]
    (service,) = of_kind(external, "Service")
    assert [url] == [f"https://{host}" for host in tls["hosts"]]
    assert [rule["host"] for rule in ingress["spec"]["rules"]] == tls["hosts"] == certificate["spec"]["dnsNames"]
    assert tls["secretName"] == certificate["spec"]["secretName"]
    assert 443 in [port["port"] for port in service["spec"]["ports"]]
