"""Test variables that libraries read, such as HTTP_PROXY and SSL_CERT_FILE.

An invalid value causes an error message without a traceback. No message contains a password from a proxy's URL.
"""

from __future__ import annotations

import os
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
from tests.settings.environment import MINIMUM

# Nothing listens at this address, so each request through a proxy at this address fails immediately.
UNUSED_ADDRESS = "127.0.0.1:9"
PASSWORD = "s3cr3t-pa55word"

# The variables of a pod: requests to Headscale go to its REST API.
REST_API_VARIABLES = MINIMUM | {
    "DNS_OWNER": "services",
    "HTTP_TIMEOUT": "5s",
    "HEADSCALE_URL": "https://headscale.test",
    "CLOUDFLARE_API_URL": "https://cloudflare.test",
    "HEALTH_PORT": "0",
    "AUTHKEY_OUTPUT_PATH": "authkey",
}
# The variables on a laptop: requests to Headscale go through the Kubernetes API.
KUBECONFIG_VARIABLES = REST_API_VARIABLES | {"HEADSCALE_ACCESS": "exec", "HEADSCALE_URL": "", "HEADSCALE_API_KEY": ""}

PROXIES = (
    UNUSED_ADDRESS,
    f"http://{UNUSED_ADDRESS}",
    f"http://me:{PASSWORD}@{UNUSED_ADDRESS}",
    f"http://me:{PASSWORD}%zz@{UNUSED_ADDRESS}",
    f"http://me:{PASSWORD}#@{UNUSED_ADDRESS}",
    f"https://{UNUSED_ADDRESS}",
    f"socks5://{UNUSED_ADDRESS}",
    f"socks4://me:{PASSWORD}@{UNUSED_ADDRESS}",
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
# Each variable with each of its values.
CASES = [(name, value) for name, values in VALUES.items() for value in values]


def kubeconfig(**cluster: Any) -> str:
    """Return a kubeconfig file with additional fields of its cluster."""
    content = {
        "current-context": "home",
        "contexts": [{"name": "home", "context": {"cluster": "home", "user": "me"}}],
        "clusters": [{"name": "home", "cluster": {"server": "https://kubernetes.test:6443", **cluster}}],
        "users": [{"name": "me", "user": {"token": "t0ken"}}],
    }
    return yaml.safe_dump(content)


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Create the files to which the values refer, and make the resolution of hostnames fail."""
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    Path("no-certificate").write_text("text")
    Path("malformed.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    os.mkfifo("fifo")
    Path("folder").mkdir()
    Path("hashed").mkdir()
    # OpenSSL reads this file, because the name is the hash of a certificate's subject. It contains no certificate.
    Path("hashed/4042bcee.0").write_text("text")
    Path("plain.yaml").write_text(kubeconfig())
    Path("proxy.yaml").write_text(kubeconfig(**{"proxy-url": f"http://me:{PASSWORD}@{UNUSED_ADDRESS}"}))
    Path("socks.yaml").write_text(kubeconfig(**{"proxy-url": f"socks5://me:{PASSWORD}@{UNUSED_ADDRESS}"}))
    Path("malformed-proxy.yaml").write_text(kubeconfig(**{"proxy-url": f"http://me:{PASSWORD}@[::1"}))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", "plain.yaml")

    def resolve(host: str, *arguments: Any, **options: Any) -> Any:
        if not host.startswith(("127.", "::1")):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return getaddrinfo(host, *arguments, **options)

    getaddrinfo = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)


RUNS: dict[str, Callable[[], Any]] = {
    "cleanup": lambda: commands.cleanup(load(CleanupSettings), FakeStop(after_waits=1)),
    "dns-watch": lambda: commands.dns_watch(load(DnsWatchSettings), FakeStop(after_waits=1), only_once=False),
    "prune": lambda: commands.prune(load(PruneSettings), FakeStop(after_waits=1), name=None),
    "dry run": lambda: plan_commands(load(DryRunSettings)),
    "dry run of prune": lambda: plan_commands(load(PruneSettings)),
}


def run_with(variables: dict[str, str], run: Callable[[], Any]) -> str:
    """Run a command with these variables, and return its report or its error. Any other exception is a bug."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        try:
            report = run()
        except LifecycleError as error:
            return str(error)
        return repr(report)


@pytest.mark.max_cases_without_full(4)
@pytest.mark.usefixtures("_files", "events")
@pytest.mark.parametrize("command", RUNS)
@pytest.mark.parametrize("access", [REST_API_VARIABLES, KUBECONFIG_VARIABLES], ids=["REST", "kubeconfig"])
def test_any_value_causes_no_traceback(access: dict[str, str], command: str) -> None:
    for name, value in CASES:
        assert PASSWORD not in run_with(access | {name: value}, RUNS[command]), (name, value)


@pytest.mark.full
@pytest.mark.usefixtures("_files", "events")
@pytest.mark.parametrize("access", [REST_API_VARIABLES, KUBECONFIG_VARIABLES], ids=["REST", "kubeconfig"])
def test_any_pair_of_values_causes_no_traceback(access: dict[str, str]) -> None:
    """Two values per variable and one command per pair are tested, because there are too many combinations."""
    some_cases = [
        (name, value)
        for name, values in VALUES.items()
        for value in dict.fromkeys((values[-1], values[1 % len(values)]))
    ]
    pairs = [(first, second) for first, second in combinations(some_cases, 2) if first[0] != second[0]]
    assert len(pairs) > 200
    for number, (first, second) in enumerate(pairs):
        command = list(RUNS)[number % len(RUNS)]
        assert PASSWORD not in run_with(access | dict([first, second]), RUNS[command]), (command, first, second)
