"""Variables that libraries read on their own: no value of them ends a command with a traceback."""

from __future__ import annotations

import socket
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import certifi
import pytest
import yaml

from lifecycle import commands
from lifecycle.domain.errors import LifecycleError
from lifecycle.dry_run import plan_commands
from lifecycle.settings.load import load
from lifecycle.settings.models import CleanupSettings, DnsWatchSettings, DryRunSettings, PruneSettings
from tests.conftest import FakeStop
from tests.settings.environment import ENOUGH

# Nothing listens there, so each request fails at once.
CLOSED = "127.0.0.1:9"
PASSWORD = "s3cr3t-pa55word"

BASE = ENOUGH | {
    "DNS_OWNER": "services",
    "HTTP_TIMEOUT": "5s",
    "HEADSCALE_URL": "https://headscale.test",
    "CLOUDFLARE_API_URL": "https://cloudflare.test",
    "HEALTH_PORT": "0",
    "AUTHKEY_OUTPUT_PATH": "authkey",
}
# As on a laptop.
BY_KUBECONFIG = BASE | {"HEADSCALE_ACCESS": "exec", "HEADSCALE_URL": "", "HEADSCALE_API_KEY": ""}

PROXIES = (
    CLOSED,
    f"http://{CLOSED}",
    f"http://me:{PASSWORD}@{CLOSED}",
    f"http://me:{PASSWORD}%zz@{CLOSED}",
    f"http://me:{PASSWORD}#@{CLOSED}",
    f"https://{CLOSED}",
    f"socks5://{CLOSED}",
    f"socks4://me:{PASSWORD}@{CLOSED}",
    "http://[::1]:9",
    "http://[::1",
    "http://127.0.0.1:port",
    "http://127.0.0.1:99999",
    "nonsense://",
)

VALUES = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HEADSCALE_PROXY", "https_proxy"), PROXIES),
    "NO_PROXY": ("*", "127.0.0.1,fd00::/8", "[::1]", "localhost, .test", "fd00::/999,:,[", "\u00e9,http://x"),
    "no_proxy": ("cloudflare.test:443",),
    "SSL_CERT_FILE": ("/no/such/file", ".", "empty", "no-certificate", "malformed.pem", "fifo", certifi.where()),
    "SSL_CERT_DIR": ("/no/such/folder", "empty", "folder", "hashed", "folder:hashed"),
    "HEADSCALE_CA_FILE": ("malformed.pem", certifi.where()),
    "SSLKEYLOGFILE": ("/no/such/folder/file",),
    "REQUESTS_CA_BUNDLE": ("/no/such/file",),
    "CURL_CA_BUNDLE": ("/no/such/file",),
    "WEBSOCKET_CLIENT_CA_BUNDLE": ("/no/such/file",),
    "KUBECONFIG": ("/no/such/file", "/", "empty", "socks.yaml", "malformed-proxy.yaml", "proxy.yaml"),
    "KUBERNETES_SERVICE_HOST": ("nonsense",),
    "NETRC": ("/no/such/file",),
}
CASES = [(name, value) for name, values in VALUES.items() for value in values]


def kubeconfig(**cluster: Any) -> str:
    content = {
        "current-context": "home",
        "contexts": [{"name": "home", "context": {"cluster": "home", "user": "me"}}],
        "clusters": [{"name": "home", "cluster": {"server": "https://kubernetes.test:6443", **cluster}}],
        "users": [{"name": "me", "user": {"token": "t0ken"}}],
    }
    return yaml.safe_dump(content)


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("no-certificate").write_text("text")
    Path("malformed.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    Path("folder").mkdir()
    Path("hashed").mkdir()
    Path("hashed/4042bcee.0").write_text("text")
    Path("plain.yaml").write_text(kubeconfig())
    Path("proxy.yaml").write_text(kubeconfig(**{"proxy-url": f"http://me:{PASSWORD}@{CLOSED}"}))
    Path("socks.yaml").write_text(kubeconfig(**{"proxy-url": f"socks5://me:{PASSWORD}@{CLOSED}"}))
    Path("malformed-proxy.yaml").write_text(kubeconfig(**{"proxy-url": f"http://me:{PASSWORD}@[::1"}))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", "plain.yaml")

    def resolve(host: str, *arguments: Any, **options: Any) -> Any:
        if not host.startswith(("127.", "::1")):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *arguments, **options)

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)


RUNS: dict[str, Callable[[], Any]] = {
    "cleanup": lambda: commands.cleanup(load(CleanupSettings), FakeStop(after=1)),
    "dns-watch": lambda: commands.dns_watch(load(DnsWatchSettings), FakeStop(after=1), only_once=False),
    "prune": lambda: commands.prune(load(PruneSettings), FakeStop(after=1), name=None),
    "dry run": lambda: plan_commands(load(DryRunSettings)),
    "dry run of prune": lambda: plan_commands(load(PruneSettings)),
}


def messages(run: Callable[[], Any], variables: dict[str, str]) -> str:
    """Run a command in an environment, and return all that it reports; any other exception is a bug."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            report = run()
        except LifecycleError as error:
            return str(error)
        return repr(report)


@pytest.mark.default_cases(4)
@pytest.mark.usefixtures("_files", "events")
@pytest.mark.parametrize("command", RUNS)
@pytest.mark.parametrize("base", [BASE, BY_KUBECONFIG], ids=["REST", "kubeconfig"])
def test_each_value_alone(base: dict[str, str], command: str) -> None:
    for name, value in CASES:
        assert PASSWORD not in messages(RUNS[command], base | {name: value}), (name, value)


@pytest.mark.full
@pytest.mark.usefixtures("_files", "events")
@pytest.mark.parametrize("base", [BASE, BY_KUBECONFIG], ids=["REST", "kubeconfig"])
def test_pairs_of_values(base: dict[str, str]) -> None:
    """Of each variable two values, with one command per pair, in turn."""
    some = [
        (name, value)
        for name, values in VALUES.items()
        for value in dict.fromkeys((values[-1], values[1 % len(values)]))
    ]
    pairs = [(one, other) for one, other in combinations(some, 2) if one[0] != other[0]]
    assert len(pairs) > 200
    for number, (one, other) in enumerate(pairs):
        command = list(RUNS)[number % len(RUNS)]
        assert PASSWORD not in messages(RUNS[command], base | dict([one, other])), (command, one, other)
