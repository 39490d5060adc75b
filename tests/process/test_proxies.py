"""Tests of commands whose requests go through an HTTP proxy, and of SSLKEYLOGFILE."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.process.commands import Pod
from tests.simulators.proxy import ProxySimulator

PASSWORD = "pr0xy-pa55word"
HEADSCALE_URL = "http://hs.example.com"
HEADSCALE_URL_IN_CLUSTER = "http://headscale.vpn.svc.cluster.local:8080"
CLOUDFLARE_URL = "http://cloudflare.example.net"


@pytest.fixture
def proxy(pod: Pod) -> Iterator[ProxySimulator]:
    """A proxy that connects to the simulators by hostnames that DNS does not resolve."""
    headscale = pod.environment["HEADSCALE_URL"].removeprefix("http://")
    cloudflare = pod.environment["CLOUDFLARE_API_URL"].removeprefix("http://").partition("/")[0]
    proxy = ProxySimulator(
        {
            "hs.example.com:80": headscale,
            "headscale.vpn.svc.cluster.local:8080": headscale,
            "cloudflare.example.net:80": cloudflare,
        },
        credentials=f"me:{PASSWORD}",
    )
    pod.environment |= {"CLOUDFLARE_API_URL": f"{CLOUDFLARE_URL}/client/v4", "HEADSCALE_USER": "svc"}
    with proxy.serve() as url:
        # The program does not read the variable PROXY. The tests copy its value to other variables.
        pod.environment["PROXY"] = url.replace("http://", f"http://me:{PASSWORD}@")
        yield proxy


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_headscale_and_cloudflare_are_reached_through_the_proxy(pod: Pod, proxy: ProxySimulator, name: str) -> None:
    result = pod.run("cleanup", HEADSCALE_URL=HEADSCALE_URL, LOG_LEVEL="debug", **{name: pod.environment["PROXY"]})

    assert result.status == 0, result.stdout
    assert pod.key_file.read_text() == pod.headscale.keys[-1].key
    assert set(proxy.requested) == {"hs.example.com:80", "cloudflare.example.net:80"}
    assert PASSWORD not in result.stdout
    assert result.events_named("settings.loaded")[0][name.lower()] == proxy.url


@pytest.mark.parametrize("name", ["HTTP_PROXY", "HEADSCALE_PROXY"])
def test_only_an_explicit_proxy_is_used_for_a_headscale_in_the_cluster(
    pod: Pod, proxy: ProxySimulator, name: str
) -> None:
    """HTTP_PROXY is ignored, so that no proxy outside the cluster receives the API key in plain HTTP."""
    proxy_setting = {name: pod.environment["PROXY"]}
    result = pod.run("--dry-run", "--output", "json", HEADSCALE_URL=HEADSCALE_URL_IN_CLUSTER, **proxy_setting)

    is_explicit = name == "HEADSCALE_PROXY"
    assert (json.loads(result.stdout)["context"]["headscale_version"] is not None) is is_explicit
    assert ("headscale.vpn.svc.cluster.local:8080" in proxy.requested) is is_explicit


@pytest.mark.parametrize("path", ["/no/such/folder/keys", "keys"])
def test_sslkeylogfile_is_ignored(pod: Pod, path: str) -> None:
    assert pod.run("cleanup", SSLKEYLOGFILE=path).status == 0
    assert not (pod.working_directory / "keys").exists()
