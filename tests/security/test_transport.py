"""TLS verification, redirects, response sizes and ids in URLs."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from wsgiref.types import WSGIApplication

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

from lifecycle.domain.errors import ResponseError
from lifecycle.settings.models import every_variable
from tests.security.runs import Runs
from tests.simulators import faults
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.serve import serve
from tests.tally import count
from tests.world import World

GIB = 1024**3
# The interpreter, the libraries, a response of 32 MiB and a copy of it.
MEMORY_LIMIT = 250 * 1024**2

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl: apt-get install openssl")


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002 - werkzeug's signature
        """Log nothing, because failed handshakes are expected."""


class Authority:
    """A private certificate authority, and a server certificate for this machine."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = folder / f"{name}.crt"
        self._key = folder / f"{name}.key"
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-addext", "basicConstraints=critical,CA:TRUE",
            "-addext", "keyUsage=critical,keyCertSign", "-keyout", self._key, "-out", self.file,
        )  # fmt: skip
        self.server_key, request = folder / f"{name}-server.key", folder / f"{name}-server.csr"
        self.server_file = folder / f"{name}-server.crt"
        extensions = folder / f"{name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost",
            "-keyout", self.server_key, "-out", request,
        )  # fmt: skip
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self._key, "-CAcreateserial", "-days", "2",
            "-extfile", extensions, "-out", self.server_file,
        )  # fmt: skip

    def _openssl(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    @contextmanager
    def serve(self, application: WSGIApplication) -> Iterator[str]:
        """Serve an application with TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server_file, self.server_key)
        server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=_Quiet, ssl_context=context)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"https://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class Pod:
    """Both upstreams, and the settings of a pod that uses them."""

    def __init__(self) -> None:
        self.headscale, self.cloudflare = HeadscaleSimulator(), CloudflareSimulator()
        self.headscale.add_user("svc")
        self.zone_id = self.cloudflare.add_zone("example.com")

    def variables(self, headscale_url: str, cloudflare_url: str, **more: str) -> dict[str, str]:
        """Return the environment of the pod."""
        return {
            "HEADSCALE_URL": headscale_url,
            "HEADSCALE_API_KEY": self.headscale.api_key,
            "CLOUDFLARE_API_URL": f"{cloudflare_url}/client/v4",
            "CLOUDFLARE_API_TOKEN": self.cloudflare.token,
            "CLOUDFLARE_ZONE_ID": self.zone_id,
            "DOMAIN_NAME": "example.com",
            **more,
        }


@pytest.fixture
def pod() -> Pod:
    return Pod()


# --- TLS verification ---------------------------------------------------------------------------------


@needs_openssl
def test_untrusted_certificate_is_refused(runs: Runs, pod: Pod, tmp_path: Path) -> None:
    """No request is sent, and variables of the libraries do not disable the verification."""
    authority = Authority(tmp_path, "private")
    with authority.serve(pod.headscale) as url, serve(pod.cloudflare) as cloudflare_url:
        for variables in (
            {},
            {"PYTHONHTTPSVERIFY": "0", "CURL_CA_BUNDLE": "", "REQUESTS_CA_BUNDLE": "", "SSL_VERIFY": "0"},
        ):
            result = runs.run("--dry-run", **pod.variables(url, cloudflare_url, **variables))
            assert result.status == 1
            assert "certificate" in result.output.lower()
    assert not pod.headscale.requests


@needs_openssl
def test_private_authority_is_trusted_if_configured(runs: Runs, pod: Pod, tmp_path: Path) -> None:
    authority, other = Authority(tmp_path, "private"), Authority(tmp_path, "other")
    with authority.serve(pod.headscale) as url, serve(pod.cloudflare) as cloudflare_url:
        result = runs.run("--dry-run", **pod.variables(url, cloudflare_url, HEADSCALE_CA_FILE=str(other.file)))
        assert (result.status, pod.headscale.requests) == (1, [])
        result = runs.run("cleanup", **pod.variables(url, cloudflare_url, HEADSCALE_CA_FILE=str(authority.file)))
        assert result.status == 0, result.output
        # It is trusted for Headscale only.
        result = runs.run("--dry-run", **pod.variables(url, url, HEADSCALE_CA_FILE=str(authority.file)))
        assert "certificate" in result.output.lower()


@needs_openssl
def test_certificate_for_another_name_is_refused(runs: Runs, pod: Pod, tmp_path: Path) -> None:
    authority = Authority(tmp_path, "private")
    with authority.serve(pod.headscale) as url, serve(pod.cloudflare) as cloudflare_url:
        elsewhere = url.replace("localhost", "127.0.0.2")
        result = runs.run(
            "--dry-run", **pod.variables(elsewhere, cloudflare_url, HEADSCALE_CA_FILE=str(authority.file))
        )
    assert result.status == 1
    assert not pod.headscale.requests


def test_no_setting_disables_verification() -> None:
    # These choose authorities; they do not disable the verification.
    names = " ".join(every_variable() - {"VERIFY_INTERVAL", "SSL_CERT_FILE", "SSL_CERT_DIR"})
    assert not any(word in names for word in ("INSECURE", "VERIFY", "SKIP", "TLS"))


def test_no_code_disables_verification(repository: Path) -> None:
    words = ("CERT_NONE", "CERT_OPTIONAL", "verify=False", "check_hostname", "assert_hostname", "verify_mode")
    sources = {path: path.read_text() for path in (repository / "lifecycle").rglob("*.py")}
    assert [(path.name, word) for path, text in sources.items() for word in words if word in text] == []


# --- Redirects ----------------------------------------------------------------------------------------


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("command", ["cleanup", "--dry-run"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_not_followed(runs: Runs, pod: Pod, command: str, status: int) -> None:
    """The target would receive the credentials."""
    elsewhere = HeadscaleSimulator()
    with serve(pod.headscale) as url, serve(pod.cloudflare) as cloudflare_url, serve(elsewhere) as elsewhere_url:
        for simulator in (pod.headscale, pod.cloudflare):
            redirect = faults.answer(status, headers={"Location": f"{elsewhere_url}/api/v1/node"})
            simulator.faults.add(redirect, times=None)
        result = runs.run(command, **pod.variables(url, cloudflare_url))
    assert result.status == 1
    assert "redirects" in result.output
    assert not elsewhere.requests


# --- Sizes of responses --------------------------------------------------------------------------------


@pytest.mark.default_cases(2)
@pytest.mark.parametrize("upstream", ["headscale", "cloudflare"])
@pytest.mark.parametrize("command", ["cleanup", "dns-watch", "--dry-run"])
def test_response_of_a_gigabyte_is_rejected(runs: Runs, pod: Pod, command: str, upstream: str) -> None:
    with serve(pod.headscale) as url, serve(pod.cloudflare) as cloudflare_url:
        simulator = pod.headscale if upstream == "headscale" else pod.cloudflare
        simulator.faults.add(faults.oversize(GIB), times=None)
        node = pod.headscale.add_node("grafana.example.com", user="svc")
        result = runs.run(
            command, **pod.variables(url, cloudflare_url, TAILSCALE_INTERFACE="", VPN_PREFIXES="100.64.0.0/10")
        )
        count("bad inputs", "response of 1 GiB")
    # A failure of Cloudflare does not fail cleanup. dns-watch retries until it is stopped.
    succeeds = command == "dns-watch" or (upstream, command) == ("cloudflare", "cleanup")
    assert result.status == (0 if succeeds else 1), result.output
    assert "larger than 32 MiB" in result.output
    assert result.rss < MEMORY_LIMIT
    assert node is not None


def test_large_compressed_response_is_rejected(runs: Runs, pod: Pod) -> None:
    """The body is 256 KiB compressed and 256 MiB decompressed."""
    compressed = bytearray()
    compressor = zlib.compressobj(wbits=31)
    for _ in range(GIB // 4 // 2**22):
        compressed += compressor.compress(bytes(2**22))
    compressed += compressor.flush()
    with serve(pod.headscale) as url, serve(pod.cloudflare) as cloudflare_url:
        bomb = faults.answer(200, bytes(compressed), headers={"Content-Encoding": "gzip"})
        pod.headscale.faults.add(bomb, times=None, path="/api/v1/")
        result = runs.run("cleanup", **pod.variables(url, cloudflare_url))
        count("bad inputs", "compressed response of 256 MiB")
    assert result.status == 1
    assert result.rss < MEMORY_LIMIT, result.rss >> 20


def test_deeply_nested_response_is_an_error_without_traceback(runs: Runs, pod: Pod) -> None:
    with serve(pod.headscale) as url, serve(pod.cloudflare) as cloudflare_url:
        pod.headscale.faults.add(faults.answer(200, "[" * 1_000_000), times=None, path="/api/v1/")
        result = runs.run("cleanup", **pod.variables(url, cloudflare_url))
        count("bad inputs", "deeply nested response")
    assert result.status == 1
    assert "Traceback" not in result.output


# --- Ids in URLs --------------------------------------------------------------------------------------

BAD_IDS: tuple[object, ...] = (
    *("../../user/tokens", "a/b", "", "1?x=y", "1#", "1%2f..", "-1", "1.5", " 1", "\u0000", "1\r\nX-Evil: 1"),
    *(None, [], {"a": 1}, True),
)


@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
def test_invalid_id_is_not_used_in_a_url(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bad: object) -> None:
    """An id from a response is validated before it becomes part of a URL."""
    world = World(monkeypatch, tmp_path)
    count("bad inputs", "invalid id")
    record = {
        "id": bad,
        "name": "grafana.example.com",
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
        "id": bad,
        "name": "grafana.example.com",
        "machineKey": f"mkey:{1:064x}",
        "registerMethod": "REGISTER_METHOD_AUTH_KEY",
        "user": {"id": "1", "name": "svc"},
        "ipAddresses": ["100.64.0.9"],
        **dict.fromkeys(("preAuthKey", "online", "expiry", "lastSeen", "tags")),
    }
    world.headscale.faults.add(faults.answer(200, json.dumps({"nodes": [node]})), path="/api/v1/node$")
    before = len(world.headscale.requests)
    with pytest.raises(ResponseError, match="Headscale"):
        world.cleanup().run()
    requested = [request.path for request in world.headscale.requests[before:]]
    assert set(requested) <= {"/version", "/swagger/v1/openapiv2.json", "/api/v1/user", "/api/v1/node"}
