"""Test with TLS servers which certificates are trusted, and which settings the errors name.

The settings of `tests.clients.servers.API`, the upstream of most requests, are API_URL and API_CA_FILE.
"""

from __future__ import annotations

import runpy
import ssl
from pathlib import Path

import pytest

from lifecycle.clients.cloudflare.errors import CLOUDFLARE
from lifecycle.clients.headscale.errors import HEADSCALE
from lifecycle.clients.trust import add_authorities, private_trust, public_trust
from lifecycle.clients.upstream import Upstream
from lifecycle.domain.errors import ResponseError, TransientError
from tests.clients.certificates import PrivateAuthority
from tests.clients.servers import StaticApi, failure, respond, send, serve_connection
from tests.simulators.serve import serve

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def authority(tmp_path: Path) -> PrivateAuthority:
    return PrivateAuthority(tmp_path)


# --- Trust ---------------------------------------------------------------------------------------------


@pytest.fixture
def _strict_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verify certificates strictly by default on each version of Python, as Python 3.13 and newer do."""
    create = ssl.create_default_context

    def strict(*args: object, **options: object) -> ssl.SSLContext:
        context = create(*args, **options)  # type: ignore[arg-type]
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)


@pytest.mark.usefixtures("_strict_by_default")
@pytest.mark.parametrize("has_key_usage", [True, False])
def test_private_authority_is_trusted_even_without_the_key_usage_extension(tmp_path: Path, has_key_usage: bool) -> None:
    """The authorities of some Kubernetes clusters lack this extension."""
    authority = PrivateAuthority(tmp_path, has_key_usage=has_key_usage)
    extended = public_trust()
    add_authorities(extended, authority.certificate)
    with serve(StaticApi(), tls=authority.server_context()) as url:
        assert send(url, trust=extended) == {"ok": True}
        assert send(url, trust=private_trust(authority.certificate)) == {"ok": True}
        if not has_key_usage:
            # Without the functions above, the request fails.
            failure(url, trust=ssl.create_default_context(cafile=authority.certificate))


def test_every_authority_in_the_folder_of_the_image_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSSL finds an authority in this folder by the hash of its subject. Here, both have the same subject."""
    folder = tmp_path / "certificates"
    authorities = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        authorities.append(PrivateAuthority(tmp_path / name))
    write_hashed = runpy.run_path(str(ROOT / "build/certificates.py"))["write_hashed"]
    write_hashed("".join(f"# a comment\n{authority.certificate.read_text()}" for authority in authorities), folder)
    monkeypatch.setattr("lifecycle.clients.trust.AUTHORITIES_OF_THE_IMAGE", folder)
    for authority in authorities:
        with serve(StaticApi(), tls=authority.server_context()) as url:
            assert send(url) == {"ok": True}


@pytest.mark.usefixtures("_strict_by_default")
def test_public_authorities_are_verified_strictly() -> None:
    assert public_trust().verify_flags & ssl.VERIFY_X509_STRICT


@pytest.mark.usefixtures("_strict_by_default")
@pytest.mark.parametrize("trusts_public", [True, False], ids=["with-public-authorities", "only-private-authority"])
def test_invalid_certificates_are_refused_with_a_private_authority(
    authority: PrivateAuthority, trusts_public: bool, tmp_path: Path
) -> None:
    trust = public_trust() if trusts_public else private_trust(authority.certificate)
    if trusts_public:
        add_authorities(trust, authority.certificate)
    (tmp_path / "other").mkdir()
    for invalid, advice in (
        (authority.server_context(name="IP:127.0.0.2"), "API_URL"),
        (authority.server_context(name="DNS:localhost"), "API_URL"),
        (authority.server_context(days=-1), "expired"),
        (PrivateAuthority(tmp_path / "other").server_context(), "API_CA_FILE"),
    ):
        api = StaticApi()
        with serve(api, tls=invalid) as url:
            error = failure(url, trust=trust)
        assert type(error) is TransientError
        assert url in str(error)
        assert [word for word in ("API_URL", "expired", "API_CA_FILE") if word in str(error)] == [advice]
        assert api.requests == []


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_file_without_certificates_is_an_os_error(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(OSError):  # noqa: PT011 - callers catch every OSError
        private_trust(path)
    with pytest.raises(OSError):  # noqa: PT011
        add_authorities(public_trust(), path)


# --- Settings in errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("upstream", "url_setting", "ca_setting"),
    [
        pytest.param(HEADSCALE, "HEADSCALE_URL", "HEADSCALE_CA_FILE", id="Headscale"),
        pytest.param(CLOUDFLARE, "CLOUDFLARE_API_URL", "SSL_CERT_FILE", id="Cloudflare"),
    ],
)
def test_errors_name_the_settings_of_the_upstream(
    authority: PrivateAuthority, upstream: Upstream, url_setting: str, ca_setting: str
) -> None:
    with serve(StaticApi(), tls=authority.server_context()) as url:
        assert ca_setting in str(failure(url, upstream=upstream))
        # A server with OpenSSL sends no response to plain HTTP, so the error cannot say that the scheme is wrong.
        assert url_setting in str(failure(url.replace("https:", "http:"), upstream=upstream))


def test_https_on_an_http_port_advises_http() -> None:
    with serve(StaticApi()) as url:
        error = failure(url.replace("http:", "https:"))
    assert type(error) is ResponseError
    assert "API_URL" in str(error)
    assert "http://" in str(error)


# The responses of servers that receive plain HTTP on a port for HTTPS.
GO_RESPONSE = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
NGINX_RESPONSE = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n"
    b"<html><head><title>400 The plain HTTP request was sent to HTTPS port</title></head></html>"
)
APACHE_RESPONSE = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<title>400 Bad Request</title>"
    b"<p>Reason: You're speaking plain HTTP to an SSL-enabled server port.<br />\n Instead use the HTTPS scheme.</p>"
)


@pytest.mark.parametrize("raw", [GO_RESPONSE, NGINX_RESPONSE, APACHE_RESPONSE], ids=["go", "nginx", "apache"])
def test_http_on_an_https_port_advises_https(raw: bytes) -> None:
    with serve_connection(respond(raw)) as address:
        error = failure(f"http://{address}")
    assert type(error) is ResponseError
    assert "API_URL" in str(error)
    assert "https://" in str(error)


def test_other_bad_request_that_mentions_https_gets_no_advice_to_use_https() -> None:
    raw = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nInvalid header. See https://docs.example.com"
    with serve_connection(respond(raw)) as address:
        assert "expects HTTPS" not in str(failure(f"http://{address}"))


def test_connection_that_ends_during_the_handshake_is_a_transient_error() -> None:
    with serve_connection(respond(b"")) as address:
        error = failure(f"https://{address}")
    assert type(error) is TransientError
