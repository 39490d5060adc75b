"""Test that the login server in every manifest is one that tailscale reconnects to after a restart of Headscale.

tests/real/test_login_server.py shows what tailscale does with each kind of URL.
"""

from __future__ import annotations

import json
import re
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

import pytest

from tests.pod.rendering import (
    CONTROLLERS,
    DEPLOY,
    OTHERS,
    VARIANTS,
    WORKLOADS,
    Document,
    containers,
    environment,
    of_kind,
    pod_spec,
    render,
    rendered,
)

REMAINING = ("monitoring", "prune", *(f"rbac/{folder.name}" for folder in sorted((DEPLOY / "rbac").iterdir())))
"""Folders that `rendered` does not know."""

PRIVATE = [
    ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fc00::/7", "::1")
]
"""Go's netip.Addr.IsPrivate and IsLoopback."""


def login_servers(documents: list[Document]) -> list[str]:
    """Return the URLs of all --login-server options, wherever they are."""
    return re.findall(r'--login-server[= ]\\?"?([^\s"\\]+)', json.dumps(documents))


def can_reconnect(url: str) -> bool:
    """Return True if tailscale reconnects to the URL.

    Source: tailscale 1.102.3, control/ts2021/client.go: with http, only private hosts are not switched to port 443.
    """
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        address = ip_address(parts.hostname or "")
    except ValueError:
        return False
    return any(address in network for network in PRIVATE if network.version == address.version)


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
def test_urls_are_classified(url: str, expected: bool) -> None:
    documents = [{"data": {"TS_EXTRA_ARGS": f"--accept-routes --login-server={url} --reset"}}]
    assert [can_reconnect(found) for found in login_servers(documents)] == [expected]


@pytest.mark.parametrize(("name", "variant"), [*((name, "native") for name in OTHERS), *VARIANTS])
def test_tailscale_can_reconnect_to_the_login_server(name: str, variant: str) -> None:
    documents = rendered(name, "plain" if variant == "plain" else "native")
    assert bool(login_servers(documents)) == (name in (*WORKLOADS, *CONTROLLERS))
    assert [url for url in login_servers(documents) if not can_reconnect(url)] == []


@pytest.mark.parametrize("name", REMAINING)
def test_other_folders_have_no_login_server(name: str) -> None:
    assert login_servers(render(DEPLOY / name)) == []


@pytest.mark.parametrize("name", WORKLOADS)
def test_login_server_is_published_with_a_certificate(name: str) -> None:
    """The external ingress publishes the URL that the pods use."""
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
