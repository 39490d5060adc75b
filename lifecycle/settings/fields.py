"""The types of settings. Each type parses and checks a value, and raises ValueError if the value is invalid."""

from __future__ import annotations

import os
import re
import ssl
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

import idna
from pydantic import AfterValidator, BeforeValidator, SecretStr

from lifecycle.domain.ownership import WILDCARD, IpNetwork, mark_of

# Source: Cloudflare's documentation of DNS records. The limit of a comment is that of the Free plan.
RECORD_NAME_LENGTH = 253
COMMENT_LENGTH = 100

# Source: Cloudflare API v4, `ttl` of a DNS record. Only Enterprise zones accept a shorter TTL.
_AUTOMATIC_TTL = 1
_TTLS_S = range(60, 86_401)

# Linux limits a file name to 255 bytes, and the files beside the key file have longer names than the key file.
_MAX_FILE_NAME_BYTES = 200

_DURATION_TOO_LONG = "must be at most 100 years"
# Longer than any useful duration. Adding it to the current time does not overflow.
_MAX_DURATION = timedelta(days=36_500)

# The flag ASCII is set, because Python otherwise also accepts a dotless i as a letter, and the digits of other scripts.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_SECONDS = re.compile(r"\d+(\.\d+)?", re.ASCII)
# An IPv4 address, or an IPv6 address.
_IP_HOST = re.compile(r"[\d.]+|.*:.*", re.ASCII)
_TAG = re.compile(r"tag:[a-z0-9._-]+")
_TOKEN = re.compile(r"[-A-Za-z0-9._~+/]+=*")
_FILE_MODE = re.compile(r"(0o?)?[0-7]{3}")
_ZONE_ID = re.compile(r"[0-9a-f]{32}")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_KUBERNETES_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_SECRET_REFERENCE = re.compile(_KUBERNETES_NAME.pattern + r"(/[-._a-zA-Z0-9]+)?")
# The user and password, the host, and the port of a URL. An IPv6 address is in brackets.
_AUTHORITY = re.compile(r"(.*@)?(\[[^][:]*:[^][]*\]|[^][:]+)(:\d*)?")
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")
# Unicode categories: control and format characters, line and paragraph separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Zl", "Zp"})
_UNEXPANDED = re.compile(r"\$\([A-Z_][A-Z0-9_]*\)")

# Source: `openssl rehash`, which names each link after the hash of a certificate's subject.
_HASHED_CERTIFICATE = re.compile(r"[0-9a-f]{8}\.\d+")

_DEFAULT_PROXY_PORT = 80


def checked_text(value: str) -> str:
    """Return a setting's text unchanged if it has no invisible character and no unexpanded reference."""
    invisible = next((character for character in value if unicodedata.category(character) in _INVISIBLE), None)
    if invisible is not None:
        raise ValueError(f"contains an invisible character, such as a line break (U+{ord(invisible):04X})")
    reference = _UNEXPANDED.search(value)
    if reference:
        raise ValueError(
            f"contains {reference[0]}, which Kubernetes did not expand. In `env`, a `value` can refer to variables "
            "that come earlier in the list. In a ConfigMap, references are not expanded"
        )
    return value


def parse_duration(text: str) -> timedelta:
    """Parse a duration such as `90`, `90s`, `15m`, `1h30m` or `7d`; plain numbers are seconds."""
    match = _DURATION.fullmatch(text)
    try:
        if _SECONDS.fullmatch(text):
            return timedelta(seconds=float(text))
        if match is None or not text:
            raise ValueError("must be a duration such as 90, 90s, 15m, 1h30m or 7d")
        days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    except OverflowError:
        raise ValueError(_DURATION_TOO_LONG) from None


def _comma_separated(value: str) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()]


def _split_url(value: str) -> SplitResult | None:
    """Split an http or https URL; return None if no HTTP client accepts it."""
    try:
        parts = urlsplit(value)
        host = parts.hostname or ""
        if _IP_HOST.fullmatch(host):
            ip_address(host)
        else:
            # Resolvers refuse an empty label and a label over 63 characters.
            host.encode("idna")
            if host.startswith("xn--"):
                idna.decode(host)  # as httpx does
        usable = parts.scheme in {"http", "https"} and bool(host) and parts.port != 0
    except ValueError:
        # The message of the error is not used, because it can repeat the value, which may contain a password.
        return None
    return parts if usable and _AUTHORITY.fullmatch(parts.netloc) and _VISIBLE_ASCII.fullmatch(value) else None


def _url(value: str) -> str:
    if _split_url(value) is None:
        raise ValueError("must be a URL such as https://headscale.example.com")
    if set(value) & set("@?#"):
        raise ValueError("must be a URL without user, password, ? or #")
    return value.rstrip("/")


def parse_proxy(value: SecretStr) -> SecretStr:
    """Return the URL of a proxy with a scheme, a port and percent-encoded credentials."""
    text = value.get_secret_value()
    scheme = text.partition("://")[0].lower()
    if scheme.startswith("socks"):
        raise ValueError("is a SOCKS proxy, which is not supported; set an http:// proxy")
    if scheme == "https":
        raise ValueError("is a proxy that expects TLS, which is not supported; set an http:// proxy")
    # curl and Go accept a proxy without a scheme.
    parts = _split_url(text if "://" in text else f"http://{text}")
    if parts is None or parts.path not in ("", "/") or parts.query or parts.fragment or "%" in (parts.hostname or ""):
        raise ValueError(
            "must be a proxy such as http://proxy.example.com:3128. Percent-encode special characters of its password"
        )
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    credentials = ""
    if parts.username is not None:
        user, password = (quote(unquote(part or ""), safe="") for part in (parts.username, parts.password))
        credentials = f"{user}:{password}@"
    return SecretStr(f"http://{credentials}{host}:{parts.port or _DEFAULT_PROXY_PORT}")


def parse_token(value: SecretStr) -> SecretStr:
    """Return a token or an API key if it can be valid."""
    if not _TOKEN.fullmatch(value.get_secret_value()):
        raise ValueError("is not a valid token: it contains quotes, spaces or line breaks, or is a placeholder")
    return value


def _domain(value: str) -> str:
    name = value.removesuffix(".").lower()
    if "." not in name or not is_dns_name(name) or len(name) > RECORD_NAME_LENGTH:
        raise ValueError("must be a domain such as example.com (an international one in its xn-- form)")
    return name


def _record_name(value: str) -> str:
    name = value.removesuffix(".").lower()
    if name != "*" and not is_dns_name(name.removeprefix(WILDCARD)):
        raise ValueError(
            "each must be a name such as docs, www.example.com or *.wiki, of letters, digits and inner hyphens (an "
            "international one in its xn-- form)"
        )
    return name


def _prefix(value: str) -> IpNetwork:
    try:
        return ip_network(value)
    except ValueError:
        raise ValueError("each must be a network such as 100.64.0.0/10, with no host bits set") from None


def _only_if(condition: Callable[[Any], object], problem: str) -> AfterValidator:
    """Return a validator that accepts a value only if the condition is true for it."""

    def check(value: Any) -> Any:
        if not condition(value):
            raise ValueError(problem)
        return value

    return AfterValidator(check)


def _existing_file(value: Path) -> Path:
    try:
        is_file = value.is_file()
    except OSError as error:
        raise ValueError(f"is a file that cannot be reached ({error.strerror})") from None
    if not is_file:
        raise ValueError("is a file that does not exist" if not value.exists() else "is not a regular file")
    return value


def _certificates(value: Path) -> Path:
    try:
        ssl.create_default_context(cafile=value)
    except OSError as error:
        raise ValueError(f"is not a readable file of certificates in PEM form ({error.strerror})") from None
    return value


def _certificate_folders(value: str) -> str:
    # OpenSSL accepts several folders, separated as in PATH.
    for folder in map(Path, value.split(":")):
        try:
            has_certificates = any(_HASHED_CERTIFICATE.fullmatch(entry.name) for entry in folder.iterdir())
        except OSError as error:
            raise ValueError(f"is a folder that cannot be read ({error.strerror})") from None
        if not has_certificates:
            raise ValueError("is a folder without hashed certificates; create them with `openssl rehash`")
    return value


def _can_reconnect(url: str) -> bool:
    """Return True if tailscale with this login server can connect again after Headscale was restarted.

    With an http URL and a host name, tailscale uses TLS on port 443 after the first connection. Source: its package
    tailscale.com/control/controlhttp.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "https" or host == "localhost" or _IP_HOST.fullmatch(host) is not None


def _is_host_address(value: str) -> bool:
    with suppress(ValueError):
        return bool(ip_address(value))
    return is_dns_name(value)


def is_dns_name(name: str) -> bool:
    """Return True if each label has 1 to 63 letters, digits and inner hyphens."""
    return all(_LABEL.fullmatch(label) for label in name.split("."))


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    _only_if(lambda value: value > timedelta(), "must be longer than 0"),
    _only_if(lambda value: value <= _MAX_DURATION, _DURATION_TOO_LONG),
]
Url = Annotated[str, AfterValidator(_url)]
LoginServer = Annotated[
    Url,
    _only_if(
        _can_reconnect,
        "must be an https URL. With http and a host name, tailscale stays offline after Headscale restarts",
    ),
]
HostAddress = Annotated[
    str, _only_if(_is_host_address, "must be an IP address such as 127.0.0.1 or ::1, or a host name, without a port")
]
ProxyUrl = Annotated[SecretStr, AfterValidator(parse_proxy)]
Namespace = Annotated[
    str, _only_if(_NAMESPACE.fullmatch, "must be a Kubernetes namespace: at most 63 lower-case letters, digits and -")
]
KubernetesName = Annotated[
    str,
    _only_if(
        _KUBERNETES_NAME.fullmatch, "must be the name of a Kubernetes object: lower-case letters, digits, - and ."
    ),
]
SecretReference = Annotated[str, _only_if(_SECRET_REFERENCE.fullmatch, "must be the `name` or `name/key` of a Secret")]
Token = Annotated[SecretStr, AfterValidator(parse_token)]
Prefixes = Annotated[
    tuple[Annotated[IpNetwork, BeforeValidator(_prefix)], ...],
    BeforeValidator(_comma_separated),
    _only_if(bool, "must contain at least one network"),
]
_Tag = Annotated[str, _only_if(_TAG.fullmatch, "each must be `tag:` followed by lower-case letters, digits, - . or _")]
Tags = Annotated[frozenset[_Tag], BeforeValidator(_comma_separated)]
Domain = Annotated[str, AfterValidator(_domain)]
RecordNames = Annotated[tuple[Annotated[str, AfterValidator(_record_name)], ...], BeforeValidator(_comma_separated)]
ZoneId = Annotated[
    str,
    AfterValidator(str.lower),
    _only_if(_ZONE_ID.fullmatch, "must be the 32 hex digits from the zone's overview page, not the domain"),
]
Ttl = Annotated[
    int,
    _only_if(lambda ttl: ttl == _AUTOMATIC_TTL or ttl in _TTLS_S, "must be 60 to 86400 seconds, or 1 for automatic"),
]
Owner = Annotated[
    str,
    _only_if(
        lambda value: _VISIBLE_ASCII.fullmatch(value) and len(mark_of(value)) <= COMMENT_LENGTH,
        f"must be ASCII without spaces, at most {COMMENT_LENGTH - len(mark_of(''))} characters",
    ),
]
FilePath = Annotated[Path, _only_if(lambda path: path.name not in {"", ".."}, "is a folder; set the path of a file")]
KeyFilePath = Annotated[
    FilePath,
    _only_if(
        lambda path: len(os.fsencode(path.name)) <= _MAX_FILE_NAME_BYTES,
        f"has a file name of more than {_MAX_FILE_NAME_BYTES} bytes",
    ),
]
ExistingFile = Annotated[Path, AfterValidator(_existing_file)]
CertificateFile = Annotated[ExistingFile, AfterValidator(_certificates)]
CertificateFolders = Annotated[str, AfterValidator(_certificate_folders)]
FileMode = Annotated[str, _only_if(_FILE_MODE.fullmatch, "must be a file mode in octal, such as 0640")]
