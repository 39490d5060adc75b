"""Test that the program verifies certificates, limits the size of responses and validates ids for URLs.

tests/clients covers more invalid certificates, redirects and compressed responses.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lifecycle.domain.errors import ResponseError
from lifecycle.settings.models import every_variable
from tests.builders import NAME
from tests.clients.certificates import PrivateAuthority
from tests.process.commands import CompletedRun, Pod
from tests.simulators import faults
from tests.simulators.serve import serve
from tests.tally import add_to_count
from tests.world import World

GIB = 1024**3
# The interpreter and the libraries need 75 MiB. A dry run reads several responses of up to 32 MiB at the same time.
MEMORY_LIMIT_BYTES = 300 * 1024**2


def run(pod: Pod, command: str, **variables: str) -> CompletedRun:
    """Run a command, and stop `dns-watch` after its first pass."""
    running = pod.start(command, HEALTH_PORT="0", **variables)
    if command == "dns-watch":
        assert running.find_event("pass.failed", "pass.finished")
        return running.stop()
    return running.wait()


@pytest.fixture
def authority(tmp_path_factory: pytest.TempPathFactory) -> PrivateAuthority:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl: apt-get install openssl")
    return PrivateAuthority(tmp_path_factory.mktemp("authority"))


# --- TLS verification ---------------------------------------------------------------------------------


def test_untrusted_certificate_is_refused(pod: Pod, authority: PrivateAuthority) -> None:
    """No request is sent. Variables that other programs read do not disable the verification."""
    other_variables = {"PYTHONHTTPSVERIFY": "0", "CURL_CA_BUNDLE": "", "REQUESTS_CA_BUNDLE": "", "SSL_VERIFY": "0"}
    with serve(pod.headscale, tls=authority.server_context()) as url:
        for variables in ({}, other_variables):
            result = pod.run("--dry-run", HEADSCALE_URL=url, **variables)
            assert result.status == 1
            assert "certificate" in result.output.lower()
    assert not pod.headscale.requests


def test_headscale_ca_file_is_trusted_only_for_headscale(pod: Pod, authority: PrivateAuthority, tmp_path: Path) -> None:
    other_authority = PrivateAuthority(tmp_path)
    with serve(pod.headscale, tls=authority.server_context()) as url:
        result = pod.run("--dry-run", HEADSCALE_URL=url, HEADSCALE_CA_FILE=str(other_authority.certificate))
        assert (result.status, pod.headscale.requests) == (1, [])
        pod.environment["HEADSCALE_CA_FILE"] = str(authority.certificate)
        result = pod.run("cleanup", HEADSCALE_URL=url)
        assert result.status == 0, result.output
        result = pod.run("--dry-run", HEADSCALE_URL=url, CLOUDFLARE_API_URL=url)
        assert result.status == 1
        assert "certificate" in result.output.lower()


def test_no_setting_disables_verification() -> None:
    # The excluded settings are an interval and the locations of trusted certificates.
    names = " ".join(every_variable() - {"VERIFY_INTERVAL", "SSL_CERT_FILE", "SSL_CERT_DIR"})
    assert not any(word in names for word in ("INSECURE", "VERIFY", "SKIP", "TLS"))


def test_no_code_disables_verification(repository: Path) -> None:
    words = ("CERT_NONE", "CERT_OPTIONAL", "verify=False", "check_hostname", "assert_hostname", "verify_mode")
    sources = {path: path.read_text() for path in (repository / "lifecycle").rglob("*.py")}
    assert [(path.name, word) for path, text in sources.items() for word in words if word in text] == []


# --- Sizes of responses --------------------------------------------------------------------------------


@pytest.mark.max_cases_without_full(2)
@pytest.mark.parametrize("upstream", ["headscale", "cloudflare"])
@pytest.mark.parametrize("command", ["cleanup", "dns-watch", "--dry-run"])
def test_response_of_a_gigabyte_is_rejected(pod: Pod, command: str, upstream: str) -> None:
    simulator = pod.headscale if upstream == "headscale" else pod.cloudflare
    simulator.faults.add(faults.oversize(GIB), times=None)
    pod.headscale.add_node(NAME, user="svc")
    result = run(pod, command, TAILSCALE_INTERFACE="")
    add_to_count("bad inputs", "response of 1 GiB")
    # A failure of Cloudflare does not fail cleanup. dns-watch retries until it is stopped, and then exits with 0.
    succeeds = command == "dns-watch" or (upstream, command) == ("cloudflare", "cleanup")
    assert result.status == (0 if succeeds else 1), result.output
    assert "larger than 32 MiB" in result.output
    assert result.peak_memory < MEMORY_LIMIT_BYTES


# --- Ids in URLs --------------------------------------------------------------------------------------

INVALID_IDS: tuple[object, ...] = (
    *("../../user/tokens", "a/b", "", "1?x=y", "1#", "1%2f..", "-1", "1.5", " 1", "\u0000", "1\r\nX-Evil: 1"),
    *(None, [], {"a": 1}, True),
)


@pytest.mark.parametrize("invalid_id", INVALID_IDS, ids=repr)
def test_invalid_id_is_not_used_in_a_url(world: World, invalid_id: object) -> None:
    """An id from a response is validated before it becomes part of a URL."""
    add_to_count("bad inputs", "invalid id")
    record = {
        "id": invalid_id,
        "name": NAME,
        "type": "A",
        "content": "100.64.0.9",
        "ttl": 60,
        "comment": None,
    }
    info = {"page": 1, "per_page": 100, "count": 1, "total_count": 1, "total_pages": 1}
    world.cloudflare.faults.add(
        faults.answer(200, json.dumps({"success": True, "errors": [], "result": [record], "result_info": info})),
        method="GET",
    )
    world.cleanup().run()
    assert not world.cloudflare.writes
    node = {
        "id": invalid_id,
        "name": NAME,
        "machineKey": f"mkey:{1:064x}",
        "registerMethod": "REGISTER_METHOD_AUTH_KEY",
        "user": {"id": "1", "name": "svc"},
        "ipAddresses": ["100.64.0.9"],
        **dict.fromkeys(("preAuthKey", "online", "expiry", "lastSeen", "tags")),
    }
    world.headscale.faults.add(faults.answer(200, json.dumps({"nodes": [node]})), path="/api/v1/node$")
    number_before = len(world.headscale.requests)
    with pytest.raises(ResponseError, match="Headscale"):
        world.cleanup().run()
    requested = [request.path for request in world.headscale.requests[number_before:]]
    assert set(requested) <= {"/version", "/swagger/v1/openapiv2.json", "/api/v1/user", "/api/v1/node"}
