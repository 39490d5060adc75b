"""The values that a setting may have: each kind checked, and written out again."""

from __future__ import annotations

import re
from datetime import timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import NoDecode

from lifecycle.domain.ownership import IpNetwork, mark_of

# Source: Cloudflare's documentation of DNS records: so long is a whole name at most, and so a comment on the Free plan.
RECORD_NAME_LENGTH = 253
_COMMENT_LENGTH = 100

_TOO_LONG = "must be at most 100 years"
# Longer than anything is meant to last, and short enough for every clock and calendar.
_LONGEST = timedelta(days=36_500)

# ASCII: to Python, a dotless i is a letter between a and z, and digits come in many scripts.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", re.ASCII)
_SECONDS = re.compile(r"\d+(\.\d+)?", re.ASCII)
_NUMERIC_HOST = re.compile(r"[\d.]+|.*:.*", re.ASCII)
_TAG = re.compile(r"tag:[a-z0-9._-]+")
_TOKEN = re.compile(r"[-A-Za-z0-9._~+/]+=*")
_ZONE_ID = re.compile(r"[0-9a-f]{32}")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_KUBERNETES_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
_SECRET_REFERENCE = re.compile(_KUBERNETES_NAME.pattern + r"(/[-._a-zA-Z0-9]+)?")
_VISIBLE = re.compile(r"[\x21-\x7e]+")


def parse_duration(value: Any) -> timedelta:
    """A duration from `90`, `90s`, `15m`, `1h30m` or `7d`; plain numbers are seconds."""
    if isinstance(value, timedelta):
        return value
    text = str(value).strip()
    match = _DURATION.fullmatch(text)
    try:
        if _SECONDS.fullmatch(text):
            return timedelta(seconds=float(text))
        if match is None or not text:
            raise ValueError("a duration is written 90, 90s, 15m, 1h30m or 7d")
        days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    except OverflowError:
        raise ValueError(_TOO_LONG) from None


def _sensible(value: timedelta) -> timedelta:
    if value <= timedelta():
        raise ValueError("must be longer than 0")
    if value > _LONGEST:
        raise ValueError(_TOO_LONG)
    return value


def _comma_separated(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _octal(value: Any) -> Any:
    if isinstance(value, str):
        if not re.fullmatch(r"(0o?)?[0-7]{3}", value):
            raise ValueError("a file mode is written in octal, such as 0640")
        return int(value, 8)
    return value


def _service_url(value: str) -> str:
    try:
        # Both can raise errors that repeat the value.
        parts = urlsplit(value)
        host = parts.hostname or ""
        if _NUMERIC_HOST.fullmatch(host):
            ip_address(host)
        else:
            # What no resolver takes: an empty label, one over 63 characters, one that is no international name.
            host.encode("idna").decode("idna")
        usable = parts.scheme in {"http", "https"} and bool(host) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or not _VISIBLE.fullmatch(value):
        raise ValueError("must be an address such as https://headscale.example.com")
    if set(value) & set("@?#"):
        raise ValueError("must be an address alone: no user, password, ? or #")
    return value.rstrip("/")


def parse_token(value: SecretStr) -> SecretStr:
    """A token or API key without the blanks around it."""
    stripped = value.get_secret_value().strip()
    if not _TOKEN.fullmatch(stripped):
        raise ValueError("is not a token: it has quotes, blanks or line breaks in it, or is a placeholder")
    return SecretStr(stripped)


def _domain(value: str) -> str:
    name = value.strip().removesuffix(".").lower()
    if "." not in name or not is_dns_name(name) or len(name) > RECORD_NAME_LENGTH:
        raise ValueError("must be a domain such as example.com (an international one in its xn-- form)")
    return name


def _zone_id(value: str) -> str:
    if not _ZONE_ID.fullmatch(value):
        raise ValueError("must be 32 hex digits as on the zone's overview page, not the domain")
    return value


def _tags(value: frozenset[str]) -> frozenset[str]:
    if not all(_TAG.fullmatch(tag) for tag in value):
        raise ValueError("each must be `tag:` and lower-case letters, digits, - . or _")
    return value


def _owner(value: str) -> str:
    if not _VISIBLE.fullmatch(value) or len(mark_of(value)) > _COMMENT_LENGTH:
        raise ValueError(f"must be ASCII without blanks, at most {_COMMENT_LENGTH - len(mark_of(''))} characters")
    return value


def _prefix(value: Any) -> Any:
    try:
        return ip_network(value)
    except ValueError:
        raise ValueError("each must be a network such as 100.64.0.0/10, no bit set behind its length") from None


def _some_prefixes(value: tuple[IpNetwork, ...]) -> tuple[IpNetwork, ...]:
    if not value:
        raise ValueError("must name at least one network")
    return value


def _namespace(value: str) -> str:
    if not _NAMESPACE.fullmatch(value):
        raise ValueError("must be a namespace in Kubernetes' sense: at most 63 lower-case letters, digits and -")
    return value


def _kubernetes_name(value: str) -> str:
    if not _KUBERNETES_NAME.fullmatch(value):
        raise ValueError("must be a name in Kubernetes' sense: lower-case letters, digits, - and .")
    return value


def _secret_reference(value: str) -> str:
    if not _SECRET_REFERENCE.fullmatch(value):
        raise ValueError("must be a Secret's `name` or `name/key`")
    return value


def _readable_file(value: Path) -> Path:
    try:
        found = value.is_file()
    except OSError as error:
        raise ValueError(f"names a file that cannot be reached ({error.strerror})") from None
    if not found:
        raise ValueError("names a file that is not there")
    return value


def is_dns_name(name: str) -> bool:
    """Whether each label has 1 to 63 letters, digits and inner hyphens."""
    return all(_LABEL.fullmatch(label) for label in name.split("."))


Duration = Annotated[timedelta, BeforeValidator(parse_duration), AfterValidator(_sensible)]
Url = Annotated[str, AfterValidator(_service_url)]
Namespace = Annotated[str, AfterValidator(_namespace)]
KubernetesName = Annotated[str, AfterValidator(_kubernetes_name)]
Token = Annotated[SecretStr, AfterValidator(parse_token)]
Prefixes = Annotated[
    tuple[Annotated[IpNetwork, BeforeValidator(_prefix)], ...],
    NoDecode,
    BeforeValidator(_comma_separated),
    AfterValidator(_some_prefixes),
]
Tags = Annotated[frozenset[str], NoDecode, BeforeValidator(_comma_separated), AfterValidator(_tags)]
Domain = Annotated[str, AfterValidator(_domain)]
ZoneId = Annotated[str, AfterValidator(_zone_id)]
Owner = Annotated[str, AfterValidator(_owner)]
SecretReference = Annotated[str, AfterValidator(_secret_reference)]
ReadableFile = Annotated[Path, AfterValidator(_readable_file)]
FileMode = Annotated[int, BeforeValidator(_octal)]


def value_text(field: FieldInfo, value: Any) -> str:
    """A setting's value as it would be written into a manifest; "" for none."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case timedelta():
            return _duration_text(value)
        case tuple() | frozenset():
            return ",".join(sorted(map(str, value)))
        case int() if is_file_mode(field):
            return f"{value:04o}"
    return str(value)


def is_file_mode(field: FieldInfo) -> bool:
    """Whether the setting's number is a file's permission bits, which are written in octal."""
    return any(getattr(item, "func", None) is _octal for item in field.metadata)


def _duration_text(value: timedelta) -> str:
    seconds = int(value.total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"
