"""Tests of the settings of proxies and certificate authorities, and of the URLs that are requested through a proxy."""

from __future__ import annotations

from pathlib import Path

import certifi
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from lifecycle.domain.proxy import Proxy
from lifecycle.settings.fields import parse_proxy
from lifecycle.settings.proxies import is_direct
from tests.settings.environment import Environment

CLOUDFLARE_URL = "https://api.cloudflare.com/client/v4"
PROXY_URL = "http://proxy.corp:3128"
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HEADSCALE_PROXY")


def proxy_url(proxy: Proxy | None) -> str | None:
    return proxy.url if proxy else None


@pytest.mark.parametrize("name", PROXY_VARIABLES)
@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://proxy.corp:3128", "http://proxy.corp:3128"),
        ("http://proxy.corp:3128/", "http://proxy.corp:3128"),
        ("proxy.corp:3128", "http://proxy.corp:3128"),
        ("10.0.0.9:3128", "http://10.0.0.9:3128"),
        ("HTTP://Proxy.corp", "http://proxy.corp:80"),
        ("http://[fd00::1]:3128", "http://[fd00::1]:3128"),
        ("http://me:secret@proxy:1", "http://me:secret@proxy:1"),
        ("http://me@proxy:1", "http://me:@proxy:1"),
        ("http://me:a%40b%2F@proxy:1", "http://me:a%40b%2F@proxy:1"),
        ("http://me:a@b@proxy:1", "http://me:a%40b@proxy:1"),
    ],
)
def test_proxy_is_accepted_and_gets_a_port(env: Environment, name: str, text: str, url: str) -> None:
    proxy = getattr(env.load(**{name: text}), name.lower())

    assert proxy.get_secret_value() == url
    assert httpx.Proxy(url).url.host  # httpx accepts the URL


@pytest.mark.parametrize("name", PROXY_VARIABLES)
@pytest.mark.parametrize(
    "text",
    [
        "socks5://127.0.0.1:9",
        "socks://127.0.0.1:9",
        "https://proxy:1",
        "ftp://proxy:1",
        "http://",
        "http://proxy:0",
        "http://proxy:65536",
        "http://proxy/path",
        "http://proxy?x=1",
        "http://me:s3cr3t#x@proxy:1",
        "http://[fe80::1%25eth0]:1",
        "http://[proxy]:1",
        "://proxy:1",
        "@",
    ],
)
def test_unusable_proxy_is_refused(env: Environment, name: str, text: str) -> None:
    problems = env.problems(**{name: text})

    assert list(problems) == [name]
    assert "s3cr3t" not in problems[name]


@given(st.text("aZ019.-_~:/[]%@?#&=+ \u00e9", max_size=16))
def test_http_client_accepts_every_valid_proxy(text: str) -> None:
    try:
        url = parse_proxy(SecretStr(text)).get_secret_value()
    except ValueError:
        return

    assert httpx.Proxy(url).url.host


@pytest.mark.parametrize(
    ("variables", "http", "https"),
    [
        pytest.param({}, None, None, id="none"),
        pytest.param({"HTTP_PROXY": "http://a:1"}, "http://a:1", None, id="http"),
        pytest.param({"HTTPS_PROXY": "http://b:1"}, None, "http://b:1", id="https"),
        pytest.param({"ALL_PROXY": "http://c:1"}, "http://c:1", "http://c:1", id="all"),
        pytest.param(
            {"ALL_PROXY": "http://c:1", "HTTP_PROXY": "http://a:1"}, "http://a:1", "http://c:1", id="all and http"
        ),
        pytest.param({"https_proxy": "http://d:1"}, None, "http://d:1", id="lower case"),
        pytest.param({"https_proxy": "http://d:1", "HTTPS_PROXY": "http://b:1"}, None, "http://b:1", id="both cases"),
        pytest.param({"https_proxy": "http://d:1", "HTTPS_PROXY": ""}, None, "http://d:1", id="empty upper case"),
        pytest.param({"HTTPS_PROXY": "http://b:1", "no_proxy": "x.org"}, None, None, id="lower case no proxy"),
    ],
)
def test_proxy_depends_on_the_scheme(
    env: Environment, variables: dict[str, str], http: str | None, https: str | None
) -> None:
    settings = env.load(**variables)

    assert proxy_url(settings.proxy_for("http://x.org/")) == http
    assert proxy_url(settings.proxy_for("https://x.org/")) == https


# The value of NO_PROXY, a URL, and whether this URL is requested without the proxy.
NO_PROXY = [
    ("", CLOUDFLARE_URL, False),
    ("api.cloudflare.com", CLOUDFLARE_URL, True),
    ("cloudflare.com", CLOUDFLARE_URL, True),
    (".cloudflare.com", CLOUDFLARE_URL, True),
    ("*.cloudflare.com", CLOUDFLARE_URL, True),
    (".api.cloudflare.com", CLOUDFLARE_URL, False),
    ("flare.com", CLOUDFLARE_URL, False),
    ("*", CLOUDFLARE_URL, True),
    ("localhost, api.cloudflare.com", CLOUDFLARE_URL, True),
    ("localhost api.cloudflare.com", CLOUDFLARE_URL, True),
    ("cloudflare.com:443", CLOUDFLARE_URL, True),
    ("cloudflare.com:8443", CLOUDFLARE_URL, False),
    ("cloudflare.com:", CLOUDFLARE_URL, True),
    ("cloudflare.com.", CLOUDFLARE_URL, True),
    (".cloudflare.com.:443", "https://api.cloudflare.com.", True),
    ("10.43.0.1", "https://10.43.0.1", True),
    ("10.43.0.1:,x.", "https://10.43.0.1", True),
    ("[fd00::7]:", "https://[fd00::7]:8080", True),
    ("fd00::", "https://[fd00::7]", False),
    (".,:,*.,.:", CLOUDFLARE_URL, False),
    ("10.43.0.1", "https://10.43.0.10", False),
    ("10.43.0.0/16", "https://10.43.7.7:8080", True),
    ("10.43.0.1/16", "https://10.43.7.7:8080", True),
    ("10.43.0.0/16", "https://10.44.0.1", False),
    ("10.43.0.1:443", "https://10.43.0.1", True),
    ("10.43.0.1:8080", "https://10.43.0.1", False),
    ("127.0.0.1,fd00::/8", "https://[fd00::7]", True),
    ("127.0.0.1,fd00::/8", "https://10.0.0.1", False),
    ("[fd00::7]", "https://[fd00::7]:8080", True),
    ("[fd00::7]:8080", "https://[fd00::7]:8080", True),
    ("[fd00::7]:8081", "https://[fd00::7]:8080", False),
    ("[fd00::]/8", "https://[fd00::7]", True),
    ("fd00::/129,http://x,[,:,99999:99999", CLOUDFLARE_URL, False),
    ("10.0.0.1", "https://x.10.0.0.1.example.com", False),
]


@pytest.mark.parametrize(("no_proxy", "url", "is_direct"), NO_PROXY)
def test_no_proxy_exempts_hosts(env: Environment, no_proxy: str, url: str, is_direct: bool) -> None:
    settings = env.load(HTTPS_PROXY=PROXY_URL, NO_PROXY=no_proxy)

    assert proxy_url(settings.proxy_for(url)) == (None if is_direct else PROXY_URL)


@given(st.text("aZ019.-_:/[]*, \u00e9", max_size=30))
def test_every_value_of_no_proxy_is_accepted(no_proxy: str) -> None:
    for url in (CLOUDFLARE_URL, "http://10.0.0.1", "https://[fd00::1]:8080"):
        assert is_direct(url, no_proxy) in {True, False}


@pytest.mark.parametrize(
    ("url", "is_direct"),
    [
        (None, True),  # The default is the next URL.
        ("http://headscale.headscale.svc.cluster.local:8080", True),
        ("http://headscale.headscale.svc:8080", True),
        ("http://headscale.headscale.svc.cluster.local.:8080", True),
        ("http://headscale:8080", True),
        ("http://localhost:8080", True),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:8080", True),
        ("https://hs.example.com", False),
    ],
)
def test_headscale_at_an_internal_address_is_reached_directly(
    env: Environment, url: str | None, is_direct: bool
) -> None:
    settings = env.load(ALL_PROXY=PROXY_URL, HEADSCALE_URL=url)

    assert settings.proxy_of_headscale == (None if is_direct else Proxy(PROXY_URL, "ALL_PROXY"))


def test_explicit_proxy_of_headscale_takes_precedence(env: Environment) -> None:
    settings = env.load(HEADSCALE_PROXY="http://inside:1", HTTPS_PROXY=PROXY_URL, NO_PROXY="*")

    assert settings.proxy_of_headscale == Proxy("http://inside:1", "HEADSCALE_PROXY")
    assert settings.proxy_for(CLOUDFLARE_URL) is None


# --- Certificate authorities --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "HEADSCALE_CA_FILE"])
def test_certificate_file_is_accepted(env: Environment, name: str) -> None:
    assert getattr(env.load(**{name: certifi.where()}), name.lower()) == Path(certifi.where())


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "HEADSCALE_CA_FILE"])
@pytest.mark.parametrize("content", [b"", b"\n", b"no certificate", b"-----BEGIN PRIVATE KEY-----\n", b"\xff\x00"])
def test_file_without_a_certificate_is_refused(env: Environment, tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(content)

    assert list(env.problems(**{name: str(file)})) == [name]


def test_folder_of_hashed_certificates_is_accepted(env: Environment, tmp_path: Path) -> None:
    # The name has the form of the hashes of `openssl rehash`.
    (tmp_path / "4042bcee.0").write_bytes(Path(certifi.where()).read_bytes())

    assert env.load(SSL_CERT_DIR=str(tmp_path)).ssl_cert_dir == str(tmp_path)
    assert env.load(SSL_CERT_DIR=f"{tmp_path}:{tmp_path}").ssl_cert_dir == f"{tmp_path}:{tmp_path}"


@pytest.mark.parametrize("value", ["no-such-folder", "file", "folder", "hashed:no-such-folder"])
def test_folder_without_certificates_is_refused(env: Environment, value: str) -> None:
    Path("file").touch()
    Path("folder").mkdir()
    Path("folder/ca.pem").touch()
    Path("hashed").mkdir()
    Path("hashed/4042bcee.0").touch()

    assert list(env.problems(SSL_CERT_DIR=value)) == ["SSL_CERT_DIR"]
