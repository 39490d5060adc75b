"""Requests through a proxy, by real processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from tests.process.commands import CompletedRun, Pod
from tests.simulators.proxy import ProxySimulator

PASSWORD = "pr0xy-pa55word"
HEADSCALE = "http://hs.example.com"
IN_CLUSTER = "http://headscale.vpn.svc.cluster.local:8080"
CLOUDFLARE = "http://cloudflare.example.net"


@pytest.fixture
def proxy(pod: Pod) -> Iterator[ProxySimulator]:
    """A proxy that resolves the names of both upstreams, which DNS does not."""
    headscale = pod.environment["HEADSCALE_URL"].removeprefix("http://")
    cloudflare = pod.environment["CLOUDFLARE_API_URL"].removeprefix("http://").partition("/")[0]
    proxy = ProxySimulator(
        {
            "hs.example.com:80": headscale,
            "headscale.vpn.svc.cluster.local:8080": headscale,
            "cloudflare.example.net:80": cloudflare,
        },
        user=f"me:{PASSWORD}",
    )
    pod.environment |= {"CLOUDFLARE_API_URL": f"{CLOUDFLARE}/client/v4", "HEADSCALE_USER": "svc"}
    with proxy.serve() as url:
        pod.environment["PROXY"] = url.replace("http://", f"http://me:{PASSWORD}@")
        yield proxy


def reads(result: CompletedRun) -> dict[str, bool]:
    """Return which upstreams a dry run could read."""
    context = json.loads(result.stdout)["context"]
    return {"Headscale": context["headscale_version"] is not None, "Cloudflare": context["zone"] == "example.com"}


def dry_run(pod: Pod, **variables: str) -> CompletedRun:
    return pod.run("--dry-run", "--output", "json", HTTP_TIMEOUT="30s", **variables)


@pytest.mark.default_cases(1)
@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_both_upstreams_are_reached_through_the_proxy(pod: Pod, proxy: ProxySimulator, name: str) -> None:
    result = pod.run("cleanup", HEADSCALE_URL=HEADSCALE, LOG_LEVEL="debug", **{name: pod.environment["PROXY"]})

    assert result.status == 0, result.stdout
    assert pod.key_file.read_text() == pod.headscale.keys[-1].key
    assert set(proxy.requested) == {"hs.example.com:80", "cloudflare.example.net:80"}
    assert PASSWORD not in result.stdout
    assert result.named("settings.loaded")[0][name.lower()] == proxy.url


def test_exempted_host_is_reached_directly(pod: Pod, proxy: ProxySimulator) -> None:
    variables = {"HTTP_PROXY": pod.environment["PROXY"], "NO_PROXY": "localhost, example.com"}

    assert reads(dry_run(pod, HEADSCALE_URL=HEADSCALE, **variables)) == {"Headscale": False, "Cloudflare": True}
    assert set(proxy.requested) == {"cloudflare.example.net:80"}


@pytest.mark.parametrize("name", ["HTTP_PROXY", "HEADSCALE_PROXY"])
def test_address_in_the_cluster_needs_an_explicit_proxy(pod: Pod, proxy: ProxySimulator, name: str) -> None:
    """An API key in plain HTTP is not sent out of the cluster by accident."""
    result = dry_run(pod, HEADSCALE_URL=IN_CLUSTER, **{name: pod.environment["PROXY"]})

    is_explicit = name == "HEADSCALE_PROXY"
    assert reads(result)["Headscale"] is is_explicit
    assert ("headscale.vpn.svc.cluster.local:8080" in proxy.requested) is is_explicit


@pytest.mark.parametrize("harm", ["refuses", "down"])
def test_failing_proxy_is_named(pod: Pod, proxy: ProxySimulator, harm: str) -> None:
    url = "http://me:{}@127.0.0.1:9" if harm == "down" else proxy.url.replace("http://", "http://me:{}@")
    result = dry_run(pod, HEADSCALE_URL=HEADSCALE, HTTP_PROXY=url.format("wr0ng-pa55word"))

    assert result.status == 1
    assert "HTTP_PROXY" in result.stdout
    assert "wr0ng-pa55word" not in result.stdout + result.stderr


INVALID: list[Callable[[str], dict[str, str]]] = [
    lambda _: {"ALL_PROXY": f"socks5://me:{PASSWORD}@127.0.0.1:9", "NO_PROXY": "127.0.0.1"},
    lambda _: {"HTTP_PROXY": f"socks4://me:{PASSWORD}@127.0.0.1:9"},
    lambda _: {"SSL_CERT_FILE": "/no/such/file"},
    lambda folder: {"SSL_CERT_FILE": folder},
    lambda folder: {"SSL_CERT_DIR": folder},
]


@pytest.mark.default_cases(5)
@pytest.mark.parametrize("variables", INVALID)
@pytest.mark.parametrize("arguments", [["cleanup"], ["dns-watch"], ["--dry-run"], ["prune", "--yes"]], ids=" ".join)
def test_unusable_value_is_a_settings_error(
    pod: Pod, variables: Callable[[str], dict[str, str]], arguments: list[str]
) -> None:
    values = variables(str(pod.working_directory))
    result = pod.run(*arguments, **values, DNS_OWNER="services")

    assert result.status == 2
    events = [json.loads(line) for line in (result.stdout + result.stderr).splitlines()]
    invalid = [event["error"].partition(":")[0] for event in events if event["event"] == "settings.invalid"]
    assert invalid == [next(iter(values))]
    assert PASSWORD not in result.stdout + result.stderr
    assert pod.has_no_writes


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({"NO_PROXY": "127.0.0.1,fd00::/8"}, id="NO_PROXY"),
        pytest.param({"SSLKEYLOGFILE": "/no/such/folder/keys"}, id="unusable SSLKEYLOGFILE"),
        pytest.param({"SSLKEYLOGFILE": "keys"}, id="SSLKEYLOGFILE"),
    ],
)
def test_value_without_effect_is_accepted(pod: Pod, variables: dict[str, str]) -> None:
    assert pod.run("cleanup", **variables).status == 0
    assert not (pod.working_directory / "keys").exists()
