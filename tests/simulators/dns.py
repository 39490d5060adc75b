"""The DNS records of the simulated Cloudflare. Invalid and conflicting records are refused."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

# Error codes that Cloudflare is known to return.
INVALID_NAME: Final = 9000
NOT_PROXIABLE: Final = 9003
TYPE_NOT_PROXIABLE: Final = 9004
INVALID_IPV4: Final = 9005
POINTS_TO_ITSELF: Final = 9039
TOO_MANY_TAGS: Final = 9300
RECORD_GONE: Final = 81044
QUOTA: Final = 81045
HOST_TAKEN: Final = 81053
CNAME_TAKEN: Final = 81054
IDENTICAL: Final = 81058
MANAGED_ELSEWHERE: Final = 81062

# Invented error codes, because the real ones are unknown. Clients must not depend on them.
VALIDATION: Final = 1004
INVALID_IPV6: Final = 9006
INVALID_CNAME: Final = 9007
INVALID_TTL: Final = 9021
NS_TAKEN: Final = 81056

HEX32: Final = re.compile(r"[0-9a-f]{32}")
LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?|\*")

# Cloudflare cannot proxy records with these addresses, which are not public.
NEVER_PROXIED: Final = tuple(
    ipaddress.ip_network(prefix)
    for prefix in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "::1/128",
        "fc00::/7",
        "fe80::/10",
    )
)

FIELDS: Final = frozenset({"id", "type", "name", "content", "ttl", "proxied", "comment", "tags", "priority"})
TYPES: Final = frozenset({"A", "AAAA", "CNAME", "TXT", "NS", "MX"})
ADDRESS_TYPES: Final = frozenset({"A", "AAAA"})
PROXIED_TYPES: Final = frozenset({"A", "AAAA", "CNAME"})

# Limits of the free plan, which are the lowest.
MAX_NAME: Final = 253
MAX_COMMENT: Final = 100
MAX_RECORDS: Final = 200
MIN_TTL: Final = 60
MAX_TTL: Final = 86400


class ApiError(Exception):
    """An error response of Cloudflare. The messages are invented, so clients must not depend on them."""

    def __init__(self, status: int, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A DNS record. It is immutable: a change creates another `Record` with the same id.

    Attributes:
        ttl: the TTL in seconds; 1 = automatic.
        comment: the comment; empty if there is none.
        read_only: True if another product of Cloudflare manages the record.
    """

    id: str
    zone_id: str
    name: str = ""
    type: str = ""
    content: str = ""
    ttl: int = 1
    proxied: bool = False
    comment: str = ""
    priority: int | None = None
    read_only: bool = False
    created_on: datetime
    modified_on: datetime
    comment_modified_on: datetime | None = None

    @property
    def proxiable(self) -> bool:
        """True if the record can be proxied."""
        if self.type in ADDRESS_TYPES:
            address = ipaddress.ip_address(self.content)
            return not any(address in network for network in NEVER_PROXIED)
        return self.type in PROXIED_TYPES

    def json(self) -> dict[str, Any]:
        """Return the record as the API returns it."""
        record: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "type": self.type,
            "content": self.content,
            "proxiable": self.proxiable,
            "proxied": self.proxied,
            "ttl": self.ttl,
            "settings": {},
            "meta": {"read_only": True} if self.read_only else {},
            "comment": self.comment or None,
            "tags": [],
            "created_on": time_text(self.created_on),
            "modified_on": time_text(self.modified_on),
        }
        if self.comment_modified_on is not None:
            record["comment_modified_on"] = time_text(self.comment_modified_on)

        if self.priority is not None:
            record["priority"] = self.priority
        return record

    def spec(self) -> dict[str, Any]:
        """Return the request body that creates this record."""
        return {
            "type": self.type,
            "name": self.name,
            "content": self.content,
            "ttl": self.ttl,
            "proxied": self.proxied,
            "comment": self.comment,
            "priority": self.priority,
        }


def time_text(instant: datetime) -> str:
    """Return a time as Cloudflare formats it: in UTC with `Z`, and four to six digits after the second."""
    fraction = f"{instant.microsecond:06d}".rstrip("0").ljust(4, "0")
    return f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{fraction}Z"


@dataclass(slots=True, kw_only=True)
class ZoneRecords:
    """Operations on the records of one zone. An operation that is refused changes nothing.

    Attributes:
        records: the records of all zones by id, oldest first. The operations change this dictionary.
        quota: the maximum number of records in the zone.
        now: the simulated time, at which all operations happen.
    """

    records: dict[str, Record]
    zone_id: str
    zone_name: str
    quota: int
    now: datetime

    def create(self, record_id: str, spec: Mapping[str, Any]) -> Record:
        """Add a record."""
        if sum(record.zone_id == self.zone_id for record in self.records.values()) >= self.quota:
            raise ApiError(400, QUOTA, "Record quota exceeded.")
        empty = Record(id=record_id, zone_id=self.zone_id, created_on=self.now, modified_on=self.now)
        return self._store(self._validated(spec, empty))

    def patch(self, record_id: str, spec: Mapping[str, Any]) -> Record:
        """Change the fields of a record that the specification contains."""
        old = self.existing(record_id)
        return self._store(self._validated(old.spec() | dict(spec), old))

    def delete(self, record_id: str) -> Record:
        """Delete a record, and return it."""
        record = self.existing(record_id)
        del self.records[record_id]
        return record

    def existing(self, record_id: str) -> Record:
        """Return a record of this zone."""
        record = self.records.get(record_id)
        if record is None or record.zone_id != self.zone_id:
            raise ApiError(404, RECORD_GONE, "Record does not exist.")
        return record

    def _store(self, record: Record) -> Record:
        self._check_conflicts(record)
        self.records[record.id] = record
        return record

    def _validated(self, spec: Mapping[str, Any], old: Record) -> Record:
        """Return the old record with the values of the specification, if these are valid."""
        if unknown := spec.keys() - FIELDS:
            raise ApiError(400, VALIDATION, f"The simulator does not support {', '.join(sorted(unknown))}.")
        type_ = spec.get("type")
        if type_ not in TYPES:
            raise ApiError(400, VALIDATION, "DNS record type is invalid.")
        if old.type not in ("", type_):
            raise ApiError(400, VALIDATION, "The type of a record cannot be changed.")
        proxied = _boolean(spec.get("proxied"))
        if proxied and type_ not in PROXIED_TYPES:
            raise ApiError(400, TYPE_NOT_PROXIABLE, "This record type cannot be proxied.")
        if spec.get("tags"):
            raise ApiError(400, TOO_MANY_TAGS, "DNS record has tags, exceeding the quota of 0.")
        comment = _comment(spec.get("comment"))
        record = replace(
            old,
            type=type_,
            name=self._name(spec.get("name")),
            content=_content(type_, spec.get("content")),
            ttl=_ttl(spec.get("ttl"), proxied=proxied),
            proxied=proxied,
            comment=comment,
            priority=_priority(type_, spec.get("priority")),
            modified_on=self.now,
            comment_modified_on=(old.comment_modified_on if comment == old.comment else self.now) if comment else None,
        )
        if (record.type, record.content) == ("CNAME", record.name):
            raise ApiError(400, POINTS_TO_ITSELF, "CNAME content cannot reference itself.")
        if proxied and not record.proxiable:
            raise ApiError(400, NOT_PROXIABLE, f"Target {record.content} is not allowed for a proxied record.")
        return record

    def _name(self, value: object) -> str:
        """Return the full name. The zone's name is appended to every name that does not end with it."""
        invalid = ApiError(400, INVALID_NAME, "DNS name is invalid.")
        if not isinstance(value, str) or not value:
            raise invalid
        if value == "@":
            return self.zone_name
        try:
            name = value.lower() if value.isascii() else value.encode("idna").decode().lower()
        except UnicodeError as error:
            raise invalid from error
        if name != self.zone_name and not name.endswith("." + self.zone_name):
            name = f"{name}.{self.zone_name}"
        if len(name) > MAX_NAME or any(LABEL.fullmatch(label) is None for label in name.split(".")):
            raise invalid
        return name

    def _check_conflicts(self, record: Record) -> None:
        others = [
            other
            for other in self.records.values()
            if other.zone_id == self.zone_id and other.name == record.name and other.id != record.id
        ]
        if any((other.type, other.content) == (record.type, record.content) for other in others):
            raise ApiError(400, IDENTICAL, "An identical record already exists.")
        if any(other.read_only for other in others):
            raise ApiError(400, MANAGED_ELSEWHERE, "This record is managed by Workers.")
        types = {other.type for other in others}
        if record.type == "CNAME" and types & PROXIED_TYPES:
            raise ApiError(400, HOST_TAKEN, "An A, AAAA, or CNAME record with that host already exists.")
        if record.type in ADDRESS_TYPES and "CNAME" in types:
            raise ApiError(400, CNAME_TAKEN, "A CNAME record with that host already exists.")
        conflicting = types - {"NS"} if record.type == "NS" else types & {"NS"}
        if conflicting and record.name != self.zone_name:
            raise ApiError(400, NS_TAKEN, "NS records may not share a name with other records.")


def _ttl(value: object, *, proxied: bool) -> int:
    ttl = 1 if value is None else value
    if isinstance(ttl, bool) or not isinstance(ttl, int):
        raise ApiError(400, VALIDATION, "ttl must be a number.")
    if ttl != 1 and not MIN_TTL <= ttl <= MAX_TTL:
        raise ApiError(400, INVALID_TTL, f"TTL must be between {MIN_TTL} and {MAX_TTL} seconds, or 1 for Automatic.")
    return 1 if proxied else ttl


def _comment(value: object) -> str:
    comment = "" if value is None else value
    if not isinstance(comment, str) or not comment.isprintable():
        raise ApiError(400, VALIDATION, "Record comment contains invalid characters.")
    if len(comment) > MAX_COMMENT:
        raise ApiError(400, VALIDATION, f"Record comment is longer than {MAX_COMMENT} characters.")
    return comment


def _boolean(value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, VALIDATION, "proxied must be a boolean.")
    return bool(value)


def _priority(type_: str, value: object) -> int | None:
    if type_ != "MX":
        return None
    if not isinstance(value, int):
        raise ApiError(400, VALIDATION, "priority is required for MX records.")
    return value


def _content(type_: str, value: object) -> str:
    """Return the content as Cloudflare stores it: IPv6 addresses in their shortest form, hostnames in lower case."""
    text = value if isinstance(value, str) else ""
    try:
        if type_ == "A":
            return str(ipaddress.IPv4Address(text))
        if type_ == "AAAA":
            return str(ipaddress.IPv6Address(text))
    except ValueError as error:
        code, version = (INVALID_IPV4, "IPv4") if type_ == "A" else (INVALID_IPV6, "IPv6")
        raise ApiError(400, code, f"Content for {type_} record must be a valid {version} address.") from error
    if not text:
        raise ApiError(400, VALIDATION, "content is required.")
    if type_ == "CNAME":
        text = text.removesuffix(".")
        if any(LABEL.fullmatch(label) is None for label in text.lower().split(".")) or _is_address(text):
            raise ApiError(400, INVALID_CNAME, "Content for CNAME record is invalid.")
    return text if type_ == "TXT" else text.lower()


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
