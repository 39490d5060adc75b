"""A small Cloudflare: zones, DNS records, token checks and limits of the v4 API."""

from __future__ import annotations

import ipaddress
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

from werkzeug import Response
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.routing import Map, Rule

from tests.simulators.service import Service

if TYPE_CHECKING:
    from werkzeug import Request

PREFIX: Final = "/client/v4"

# Codes that Cloudflare is known to answer.
MALFORMED_HEADERS: Final = 6003
MALFORMED_AUTHORIZATION: Final = 6111
NO_ROUTE: Final = 7003
NO_ROUTE_FOR_URI: Final = 7000
INVALID_NAME: Final = 9000
NOT_PROXIABLE: Final = 9003
TYPE_NOT_PROXIABLE: Final = 9004
INVALID_IPV4: Final = 9005
NO_AUTHENTICATION: Final = 9106
INVALID_TOKEN: Final = 9109
TOO_MANY_TAGS: Final = 9300
AUTHENTICATION: Final = 10000
RECORD_GONE: Final = 81044
QUOTA: Final = 81045
HOST_TAKEN: Final = 81053
CNAME_TAKEN: Final = 81054
IDENTICAL: Final = 81058
TOKEN_INVALID: Final = 1000

# Codes that no source names: clients may not lean on them.
VALIDATION: Final = 1004
INVALID_IPV6: Final = 9006
INVALID_TTL: Final = 9021
NS_TAKEN: Final = 81056

HEX32: Final = re.compile(r"[0-9a-f]{32}")
TOKEN_FORM: Final = re.compile(r"Bearer [-A-Za-z0-9._~+/]+=*")
LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?|\*")

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

TYPES: Final = frozenset({"A", "AAAA", "CNAME", "TXT", "NS", "MX"})
ADDRESS_TYPES: Final = frozenset({"A", "AAAA"})
PROXIED_TYPES: Final = frozenset({"A", "AAAA", "CNAME"})

MAX_PER_PAGE: Final = 5000
"""What is known to work; the schema names a thousand times more."""

Plan = Literal["free", "pro", "business", "enterprise"]
Permission = Literal["edit", "read", "none"]
TokenStatus = Literal["active", "disabled", "expired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a plan allows."""

    comment: int
    tags: int
    batch: int
    records: int
    min_ttl: int = 60


LIMITS: Final[Mapping[Plan, Limits]] = {
    "free": Limits(comment=100, tags=0, batch=200, records=200),
    "pro": Limits(comment=500, tags=20, batch=3500, records=3500),
    "business": Limits(comment=500, tags=20, batch=3500, records=3500),
    "enterprise": Limits(comment=500, tags=20, batch=3500, records=3500, min_ttl=30),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """A zone."""

    id: str
    name: str
    status: str
    reachable: bool
    """Whether the token's account has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A DNS record, as it was when it was asked for."""

    id: str
    zone_id: str
    name: str
    type: str
    content: str
    ttl: int
    proxied: bool
    comment: str
    tags: tuple[str, ...]
    settings: Mapping[str, Any]
    priority: int | None
    created_on: datetime
    modified_on: datetime
    comment_modified_on: datetime | None = None
    tags_modified_on: datetime | None = None

    @property
    def proxiable(self) -> bool:
        """Whether Cloudflare could put itself in front."""
        if self.type not in PROXIED_TYPES:
            return False
        return self.type == "CNAME" or not _private(self.content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An API token."""

    id: str
    value: str
    permission: Permission
    account_owned: bool
    status: TokenStatus
    zones: frozenset[str] | None
    """Ids of the zones it is for; None = all of the account."""


@dataclass(slots=True, kw_only=True)
class _Limit:
    """So many requests in so long, then none for as long."""

    requests: int
    per: timedelta
    retry_after: bool
    code: int
    since: datetime
    count: int = 0
    blocked_until: datetime | None = None


class ApiError(Exception):
    """A request that Cloudflare refuses."""

    def __init__(self, status: int, code: int, message: str, *chain: tuple[int, str], beside: tuple[int, str] | None = None) -> None:
        """Remember the error.

        Args:
            status: HTTP status.
            code: Cloudflare's.
            message: its words, on which nobody should rely.
            chain: what is nested below it.
            beside: a second error of the same answer.
        """
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        error: dict[str, Any] = {"code": code, "message": message}
        if chain:
            error["error_chain"] = [{"code": number, "message": text} for number, text in chain]
        self.errors = [error]
        if beside is not None:
            self.errors.append({"code": beside[0], "message": beside[1]})


def _private(content: str) -> bool:
    address = ipaddress.ip_address(content)
    return any(address in network for network in NEVER_PROXIED if network.version == address.version)


def _time_text(instant: datetime) -> str:
    """UTC with `Z` and four to six digits."""
    fraction = f"{instant.microsecond:06d}".rstrip("0").ljust(4, "0")
    return f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.{fraction}Z"


Handler = Callable[["CloudflareSimulator", "Request", dict[str, str]], dict[str, Any]]

_ROUTES: list[tuple[str, str, Handler]] = []


def _route(method: str, path: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        _ROUTES.append((method, PREFIX + path, handler))
        return handler

    return register


class CloudflareSimulator(Service):
    """One Cloudflare account and one token."""

    def __init__(
        self,
        *,
        token: str | None = None,
        plan: Plan = "free",
        now: Callable[[], datetime] | None = None,
        quota: int | None = None,
        account_owned: bool = False,
        seed: int = 1,
    ) -> None:
        """Start an account without zones.

        Args:
            token: the token it accepts; made up when left out.
            plan: of all zones.
            now: the clock, aware UTC; the real one when left out.
            quota: records a zone may have; the plan's when left out.
            account_owned: whether the token belongs to the account, not to a user.
            seed: of everything random.
        """
        super().__init__()
        self._now = now or (lambda: datetime.now(UTC))
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self.limits = LIMITS[plan]
        self.plan = plan
        self.quota = self.limits.records if quota is None else quota
        self.account_id = self._new_id()
        self._zones: dict[str, Zone] = {}
        self._records: dict[str, Record] = {}
        self._before: dict[str, Record] = {}
        self._secrets: list[str] = []
        self._limit: _Limit | None = None
        self.token = self.set_token(token, account_owned=account_owned)
        rules = [Rule(path, methods=[method], endpoint=handler) for method, path, handler in _ROUTES]
        self._map = Map(rules, merge_slashes=False)

    # --- What a test or the demo does ---------------------------------------------------------------

    def set_token(
        self,
        value: str | None = None,
        *,
        permission: Permission = "edit",
        account_owned: bool = False,
        status: TokenStatus = "active",
        zones: Iterable[str] | None = None,
    ) -> str:
        """Replace the token; the old one is unknown from now on.

        Args:
            value: the token; made up when left out.
            permission: on DNS.
            account_owned: whether it belongs to the account, not to a user.
            status: other than `active` is refused.
            zones: ids of the zones it is for; None = all of the account.

        Returns:
            The token.
        """
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
        with self.lock:
            if value is None:
                value = ("cfat_" if account_owned else "") + "".join(self._random.choices(alphabet, k=40))
            self._token = Token(
                id=self._new_id(),
                value=value,
                permission=permission,
                account_owned=account_owned,
                status=status,
                zones=None if zones is None else frozenset(zones),
            )
            self.token = value
            self._secrets.append(value)
            return value

    def secrets(self) -> list[str]:
        """Every token that was ever accepted."""
        with self.lock:
            return list(self._secrets)

    def limit(
        self,
        requests: int,
        per: timedelta = timedelta(minutes=5),
        *,
        retry_after: bool = True,
        code: Literal[971, 10429] = 10429,
    ) -> None:
        """Allow so many requests in so long; past it answer 429 for as long again.

        Args:
            requests: how many; 0 = refuse at once.
            per: the window, and how long a client is locked out.
            retry_after: whether the answer says so in a header.
            code: which of the two bodies that were seen.
        """
        with self.lock:
            self._limit = _Limit(requests=requests, per=per, retry_after=retry_after, code=code, since=self._now())

    def unlimit(self) -> None:
        """Lift the limit."""
        with self.lock:
            self._limit = None

    def add_zone(
        self, name: str, zone_id: str | None = None, status: str = "active", *, account_owned: bool = True
    ) -> str:
        """Add a zone.

        Args:
            name: such as `example.com`; may be that of another zone.
            zone_id: 32 hex digits; made up when left out.
            status: such as `pending`.
            account_owned: whether it is in the token's account; the token cannot see another's.

        Returns:
            Its id.
        """
        with self.lock:
            zone = Zone(id=zone_id or self._new_id(), name=name.lower(), status=status, reachable=account_owned)
            self._zones[zone.id] = zone
            return zone.id

    def add_record(
        self,
        zone_id: str,
        *,
        type: str,  # noqa: A002 - Cloudflare's word
        name: str,
        content: str,
        ttl: int = 1,
        proxied: bool = False,
        comment: str | None = None,
        tags: tuple[str, ...] = (),
    ) -> str:
        """Add a record, as a person would in the dashboard; give its id.

        Raises:
            ApiError: the zone would refuse it too.
        """
        spec = {
            "type": type,
            "name": name,
            "content": content,
            "ttl": ttl,
            "proxied": proxied,
            "comment": comment,
            "tags": list(tags),
        }
        with self.lock:
            self._remember()
            return self._create(self._records, self._zones[zone_id], spec).id

    def change_record(self, record_id: str, **fields: Any) -> None:  # noqa: ANN401 - any of a record's fields
        """Change a record, as a person would in the dashboard."""
        with self.lock:
            self._remember()
            record = self._records[record_id]
            self._patch(self._records, self._zones[record.zone_id], record_id, fields)

    def remove_record(self, record_id: str) -> None:
        """Remove a record, as a person would in the dashboard."""
        with self.lock:
            self._remember()
            del self._records[record_id]

    def records(self, zone_id: str, name: str | None = None) -> list[Record]:
        """The records of a zone, or of one full name, oldest first."""
        with self.lock:
            return [
                record
                for record in self._records.values()
                if record.zone_id == zone_id and (name is None or record.name == name.lower())
            ]

    # --- HTTP ---------------------------------------------------------------------------------------

    def answer(self, request: Request, *, stale: bool) -> Response:
        """Execute one request, with the lock held."""
        if not stale:
            return self._answer(request)
        present, self._records = self._records, dict(self._before)
        try:
            return self._answer(request)
        finally:
            self._records = present

    def _answer(self, request: Request) -> Response:
        headers = {"cf-ray": f"{self._random.getrandbits(64):016x}-FRA", "api-version": "2026-01-01"}
        throttled = self._throttled()
        if throttled is not None:
            throttled.headers.update(headers)
            return throttled
        try:
            body = self._dispatch(request)
        except ApiError as error:
            body = {"result": None, "success": False, "errors": error.errors, "messages": []}
            status = error.status
        else:
            body = {"success": True, "errors": [], "messages": []} | body
            status = 200
            if request.method != "GET":
                headers["cf-auditlog-id"] = self._new_id()
        return Response(json.dumps(body, ensure_ascii=False), status, headers, content_type="application/json")

    def _throttled(self) -> Response | None:
        """Count a request; the answer when it is one too many."""
        limit = self._limit
        if limit is None:
            return None
        now = self._now()
        if limit.blocked_until is not None and now >= limit.blocked_until:
            limit.blocked_until, limit.since, limit.count = None, now, 0
        if limit.blocked_until is None and now >= limit.since + limit.per:
            limit.since, limit.count = now, 0
        limit.count += 1
        if limit.blocked_until is None and limit.count > limit.requests:
            limit.blocked_until = now + limit.per
        if limit.blocked_until is None:
            return None
        body: dict[str, Any] = {
            "success": False,
            "errors": [{"code": limit.code, "message": "Please wait and consider throttling your request speed"}],
        }
        if limit.code == 971:  # noqa: PLR2004 - of the two bodies seen, the whole one
            body |= {"messages": [], "result": None}
        response = Response(json.dumps(body), 429, content_type="application/json")
        if limit.retry_after:
            seconds = max(1, -(-(limit.blocked_until - now) // timedelta(seconds=1)))
            response.headers["retry-after"] = str(seconds)
        return response

    def _dispatch(self, request: Request) -> dict[str, Any]:
        self._check_header(request)
        try:
            handler, arguments = self._map.bind_to_environ(request.environ).match()
        except MethodNotAllowed as error:
            raise ApiError(405, VALIDATION, "Method not allowed for this authentication scheme") from error
        except NotFound as error:
            raise ApiError(404, NO_ROUTE, f"Could not route to {request.path}, perhaps your object identifier is invalid?", beside=(NO_ROUTE_FOR_URI, "No route for that URI")) from error
        for identifier in arguments.values():
            if HEX32.fullmatch(identifier) is None:
                raise ApiError(400, NO_ROUTE, f"Could not route to {request.path}, perhaps your object identifier is invalid?", beside=(NO_ROUTE_FOR_URI, "No route for that URI"))
        answer: dict[str, Any] = handler(self, request, dict(arguments))
        return answer

    def _check_header(self, request: Request) -> None:
        header = request.headers.get("Authorization")
        if header is None:
            raise ApiError(400, NO_AUTHENTICATION, "Missing X-Auth-Key, X-Auth-Email or Authorization headers")
        if TOKEN_FORM.fullmatch(header) is None:
            chain = (MALFORMED_AUTHORIZATION, "Invalid format for Authorization header")
            raise ApiError(400, MALFORMED_HEADERS, "Invalid request headers", chain)

    def _is_token(self, request: Request) -> bool:
        return request.headers["Authorization"].removeprefix("Bearer ") == self._token.value

    def _check_token(self, request: Request) -> None:
        if not self._is_token(request) or self._token.status != "active":
            raise ApiError(403, INVALID_TOKEN, "Invalid access token")

    def _may_reach(self, zone: Zone) -> bool:
        return zone.reachable and (self._token.zones is None or zone.id in self._token.zones)

    def _zone(self, request: Request, zone_id: str, *, write: bool) -> Zone:
        """The zone, if the token may do that with its records."""
        self._check_token(request)
        zone = self._zones.get(zone_id)
        allowed = self._token.permission == "edit" or (self._token.permission == "read" and not write)
        if zone is None or not self._may_reach(zone) or not allowed:
            raise ApiError(403, AUTHENTICATION, "Authentication error")
        return zone

    # --- Records ------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def _remember(self) -> None:
        self._before = dict(self._records)

    def _create(self, records: dict[str, Record], zone: Zone, spec: Mapping[str, Any]) -> Record:
        if sum(record.zone_id == zone.id for record in records.values()) >= self.quota:
            raise ApiError(400, QUOTA, "Record quota exceeded.")
        now = self._now()
        record = self._built(zone, spec, Record(
            id=self._new_id(), zone_id=zone.id, name="", type="", content="", ttl=1, proxied=False, comment="",
            tags=(), settings={}, priority=None, created_on=now, modified_on=now,
        ))
        self._check_conflicts(records, record)
        records[record.id] = record
        return record

    def _patch(self, records: dict[str, Record], zone: Zone, record_id: str, spec: Mapping[str, Any]) -> Record:
        old = self._existing(records, zone, record_id)
        self._check_type_stays(old, spec)
        kept = {
            "type": old.type,
            "name": old.name,
            "content": old.content,
            "ttl": old.ttl,
            "proxied": old.proxied,
            "comment": old.comment,
            "tags": list(old.tags),
            "settings": old.settings,
            "priority": old.priority,
        }
        return self._replace(records, zone, old, kept | dict(spec))

    def _put(self, records: dict[str, Record], zone: Zone, record_id: str, spec: Mapping[str, Any]) -> Record:
        old = self._existing(records, zone, record_id)
        self._check_type_stays(old, spec)
        return self._replace(records, zone, old, spec)

    def _replace(self, records: dict[str, Record], zone: Zone, old: Record, spec: Mapping[str, Any]) -> Record:
        record = self._built(zone, spec, old)
        self._check_conflicts(records, record)
        records[record.id] = record
        return record

    def _delete(self, records: dict[str, Record], zone: Zone, record_id: str) -> Record:
        record = self._existing(records, zone, record_id)
        del records[record_id]
        return record

    def _existing(self, records: Mapping[str, Record], zone: Zone, record_id: str) -> Record:
        record = records.get(record_id)
        if record is None or record.zone_id != zone.id:
            raise ApiError(404, RECORD_GONE, "Record does not exist.")
        return record

    def _check_type_stays(self, old: Record, spec: Mapping[str, Any]) -> None:
        if spec.get("type", old.type) != old.type:
            raise ApiError(400, VALIDATION, "The type of a record cannot be changed.")

    def _built(self, zone: Zone, spec: Mapping[str, Any], old: Record) -> Record:
        """Check a record spec and make the record of it."""
        kind = spec.get("type")
        if not isinstance(kind, str) or kind not in TYPES:
            raise ApiError(400, VALIDATION, "DNS record type is invalid.")
        now = self._now()
        proxied = self._checked_flag(spec.get("proxied"))
        comment = self._checked_comment(spec.get("comment"))
        tags = self._checked_tags(spec.get("tags"))
        settings = spec.get("settings") or {}
        priority = spec.get("priority")
        if not isinstance(settings, Mapping):
            raise ApiError(400, VALIDATION, "settings must be an object.")
        if kind == "MX" and not isinstance(priority, int):
            raise ApiError(400, VALIDATION, "priority is required for MX records.")
        record = replace(
            old,
            type=kind,
            name=self._checked_name(zone, spec.get("name")),
            content=self._checked_content(kind, spec.get("content")),
            ttl=1 if proxied else self._checked_ttl(spec.get("ttl", 1)),
            proxied=proxied,
            comment=comment,
            tags=tags,
            settings=dict(settings),
            priority=priority if kind == "MX" else None,
            modified_on=now,
            comment_modified_on=None if not comment else now if comment != old.comment else old.comment_modified_on,
            tags_modified_on=None if not tags else now if tags != old.tags else old.tags_modified_on,
        )
        if proxied and kind not in PROXIED_TYPES:
            raise ApiError(400, TYPE_NOT_PROXIABLE, "This record type cannot be proxied.")
        if proxied and not record.proxiable:
            message = f"Target {record.content} is not allowed for a proxied record."
            raise ApiError(400, NOT_PROXIABLE, message)
        return record

    def _checked_flag(self, value: object) -> bool:
        if value is None:
            return False
        if not isinstance(value, bool):
            raise ApiError(400, VALIDATION, "proxied must be a boolean.")
        return value

    def _checked_name(self, zone: Zone, value: object) -> str:
        invalid = ApiError(400, INVALID_NAME, "DNS name is invalid.")
        if not isinstance(value, str) or not value:
            raise invalid
        if value == "@":
            return zone.name
        try:
            name = value.lower() if value.isascii() else value.encode("idna").decode().lower()
        except UnicodeError as error:
            raise invalid from error
        if name != zone.name and not name.endswith("." + zone.name):
            name = f"{name}.{zone.name}"
        if len(name) > 253 or any(LABEL.fullmatch(label) is None for label in name.split(".")):  # noqa: PLR2004 - RFC 1035
            raise invalid
        return name

    def _checked_content(self, kind: str, value: object) -> str:
        if kind == "A":
            try:
                return str(ipaddress.IPv4Address(value if isinstance(value, str) else ""))
            except ValueError as error:
                raise ApiError(400, INVALID_IPV4, "Content for A record must be a valid IPv4 address.") from error
        if kind == "AAAA":
            try:
                return str(ipaddress.IPv6Address(value if isinstance(value, str) else ""))
            except ValueError as error:
                raise ApiError(400, INVALID_IPV6, "Content for AAAA record must be a valid IPv6 address.") from error
        if not isinstance(value, str) or not value:
            raise ApiError(400, VALIDATION, "content is required.")
        return value if kind == "TXT" else value.lower()

    def _checked_ttl(self, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ApiError(400, VALIDATION, "ttl must be a number.")
        if value != 1 and not self.limits.min_ttl <= value <= 86400:  # noqa: PLR2004 - a day
            message = f"TTL must be between {self.limits.min_ttl} and 86400 seconds, or 1 for Automatic."
            raise ApiError(400, INVALID_TTL, message)
        return value

    def _checked_comment(self, value: object) -> str:
        if value is None:
            return ""
        if not isinstance(value, str) or not value.isprintable():
            raise ApiError(400, VALIDATION, "Record comment contains invalid characters.")
        if len(value) > self.limits.comment:
            message = f"Record comment is longer than {self.limits.comment} characters."
            raise ApiError(400, VALIDATION, message)
        return value

    def _checked_tags(self, value: object) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(tag, str) and ":" in tag for tag in value):
            raise ApiError(400, VALIDATION, "tags must be a list of name:value.")
        if len(value) > self.limits.tags:
            raise ApiError(400, TOO_MANY_TAGS, f"DNS record has {len(value)} tags, exceeding the quota of {self.limits.tags}.")
        return tuple(value)

    def _check_conflicts(self, records: Mapping[str, Record], record: Record) -> None:
        beside = [
            other
            for other in records.values()
            if other.zone_id == record.zone_id and other.name == record.name and other.id != record.id
        ]
        if any((other.type, other.content) == (record.type, record.content) for other in beside):
            raise ApiError(400, IDENTICAL, "An identical record already exists.")
        types = {other.type for other in beside}
        if record.type == "CNAME" and types & PROXIED_TYPES:
            raise ApiError(400, HOST_TAKEN, "An A, AAAA, or CNAME record with that host already exists.")
        if record.type in ADDRESS_TYPES and "CNAME" in types:
            raise ApiError(400, CNAME_TAKEN, "A CNAME record with that host already exists.")
        apex = record.name == self._zones[record.zone_id].name
        if not apex and types and ("NS" in types) != (record.type == "NS"):
            raise ApiError(400, NS_TAKEN, "NS records may not share a name with other records.")

    def record_json(self, record: Record) -> dict[str, Any]:
        """A record as it is really returned."""
        shown: dict[str, Any] = {
            "id": record.id,
            "name": record.name,
            "type": record.type,
            "content": record.content,
            "proxiable": record.proxiable,
            "proxied": record.proxied,
            "ttl": record.ttl,
            "settings": dict(record.settings),
            "meta": {},
            "comment": record.comment or None,
            "tags": list(record.tags),
            "created_on": _time_text(record.created_on),
            "modified_on": _time_text(record.modified_on),
        }
        if record.comment_modified_on is not None:
            shown["comment_modified_on"] = _time_text(record.comment_modified_on)
        if record.tags_modified_on is not None:
            shown["tags_modified_on"] = _time_text(record.tags_modified_on)
        if record.priority is not None:
            shown["priority"] = record.priority
        return shown


# --- Reading requests -------------------------------------------------------------------------------


def _body(request: Request) -> dict[str, Any]:
    try:
        document = json.loads(request.get_data() or b"null")
    except ValueError as error:
        raise ApiError(400, VALIDATION, "Malformed JSON in request body") from error
    if not isinstance(document, dict):
        raise ApiError(400, VALIDATION, "Request body must be an object")
    return document


def _number(query: MultiDict[str, str], name: str, default: int, low: int, high: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise ApiError(400, VALIDATION, f"{name} must be between {low} and {high}.")
    return int(text)


def _page(found: list[dict[str, Any]], page: int, per_page: int) -> dict[str, Any]:
    shown = found[(page - 1) * per_page : page * per_page]
    return {
        "result": shown,
        "result_info": {
            "page": page,
            "per_page": per_page,
            "count": len(shown),
            "total_count": len(found),
            "total_pages": max(1, -(-len(found) // per_page)),
        },
    }


MATCHERS: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "": lambda value, wanted: value == wanted,
    ".exact": lambda value, wanted: value == wanted,
    ".contains": lambda value, wanted: wanted in value,
    ".startswith": lambda value, wanted: value.startswith(wanted),
    ".endswith": lambda value, wanted: value.endswith(wanted),
}


def _text_filters(record: Record, query: MultiDict[str, str]) -> Iterable[bool]:
    for field_name in ("name", "content", "comment"):
        value = str(getattr(record, field_name)).lower()
        for suffix, matches in MATCHERS.items():
            yield from (matches(value, wanted.lower()) for wanted in query.getlist(field_name + suffix))
    yield from (record.type == wanted for wanted in query.getlist("type"))
    yield from (record.proxied == (wanted == "true") for wanted in query.getlist("proxied"))
    if "comment.present" in query:
        yield bool(record.comment)
    if "comment.absent" in query:
        yield not record.comment


def _tag_filters(record: Record, query: MultiDict[str, str]) -> Iterable[bool]:
    tags = {tag.lower() for tag in record.tags}
    names = {tag.partition(":")[0] for tag in tags}
    for suffix, matches in MATCHERS.items():
        for wanted in query.getlist("tag" + suffix):
            name, _, value = wanted.lower().partition(":")
            yield any(tag.startswith(name + ":") and matches(tag.partition(":")[2], value) for tag in tags)
    yield from (wanted.lower() in names for wanted in query.getlist("tag.present"))
    yield from (wanted.lower() not in names for wanted in query.getlist("tag.absent"))


def _wanted(record: Record, query: MultiDict[str, str]) -> bool:
    texts, tags = list(_text_filters(record, query)), list(_tag_filters(record, query))
    of_texts = any(texts) if query.get("match") == "any" and texts else all(texts)
    of_tags = any(tags) if query.get("tag_match") == "any" and tags else all(tags)
    return of_texts and of_tags


# --- Tokens -----------------------------------------------------------------------------------------


def _verified(sim: CloudflareSimulator, request: Request, *, account: bool) -> dict[str, Any]:
    token = sim._token
    if not sim._is_token(request) or token.account_owned != account:
        raise ApiError(401, TOKEN_INVALID, "Invalid API Token")
    words = {"active": "valid and active", "disabled": "disabled", "expired": "expired"}[token.status]
    return {
        "result": {"id": token.id, "status": token.status},
        "messages": [{"code": 10000, "message": f"This API Token is {words}", "type": None}],
    }


@_route("GET", "/user/tokens/verify")
def _verify_user_token(sim: CloudflareSimulator, request: Request, _arguments: dict[str, str]) -> dict[str, Any]:
    return _verified(sim, request, account=False)


@_route("GET", "/accounts/<account_id>/tokens/verify")
def _verify_account_token(sim: CloudflareSimulator, request: Request, arguments: dict[str, str]) -> dict[str, Any]:
    if arguments["account_id"] != sim.account_id:
        raise ApiError(403, AUTHENTICATION, "Authentication error")
    return _verified(sim, request, account=True)


# --- Zones ------------------------------------------------------------------------------------------


ZONE_OPERATORS: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "equal": lambda value, wanted: value == wanted,
    "not_equal": lambda value, wanted: value != wanted,
    "starts_with": lambda value, wanted: value.startswith(wanted),
    "ends_with": lambda value, wanted: value.endswith(wanted),
    "contains": lambda value, wanted: wanted in value,
}


def _zone_json(sim: CloudflareSimulator, zone: Zone) -> dict[str, Any]:
    rights = {"edit": ["#dns_records:edit", "#dns_records:read", "#zone:read"], "read": ["#dns_records:read", "#zone:read"]}
    return {
        "id": zone.id,
        "name": zone.name,
        "status": zone.status,
        "paused": False,
        "type": "full",
        "development_mode": 0,
        "account": {"id": sim.account_id, "name": "Example"},
        "owner": {"id": None, "type": "user", "email": None},
        "plan": {"id": "0" * 32, "name": "Plan", "legacy_id": sim.plan},
        "permissions": rights.get(sim._token.permission, []),
        "created_on": "2024-01-01T00:00:00.123456Z",
        "modified_on": "2024-01-01T00:00:00.123456Z",
    }


@_route("GET", "/zones")
def _list_zones(sim: CloudflareSimulator, request: Request, _arguments: dict[str, str]) -> dict[str, Any]:
    sim._check_token(request)
    query = request.args
    page = _number(query, "page", 1, 1, 10**9)
    per_page = _number(query, "per_page", 20, 5, 50)
    found = [zone for zone in sim._zones.values() if sim._may_reach(zone)]
    if "name" in query:
        operator, colon, wanted = query["name"].partition(":")
        if not colon:
            operator, wanted = "equal", operator
        matches = ZONE_OPERATORS.get(operator)
        if matches is None:
            raise ApiError(400, VALIDATION, "Invalid name filter")
        found = [zone for zone in found if matches(zone.name, wanted.lower())]
    if "status" in query:
        found = [zone for zone in found if zone.status == query["status"]]
    if "account.id" in query:
        found = [zone for zone in found if query["account.id"] == sim.account_id]
    return _page([_zone_json(sim, zone) for zone in found], page, per_page)


@_route("GET", "/zones/<zone_id>")
def _get_zone(sim: CloudflareSimulator, request: Request, arguments: dict[str, str]) -> dict[str, Any]:
    sim._check_token(request)
    zone = sim._zones.get(arguments["zone_id"])
    if zone is None or not sim._may_reach(zone):
        raise ApiError(403, AUTHENTICATION, "Authentication error")
    return {"result": _zone_json(sim, zone)}


# --- Records ----------------------------------------------------------------------------------------

ORDERS: Final[Mapping[str, Callable[[Record], Any]]] = {
    "type": lambda record: record.type,
    "name": lambda record: record.name,
    "content": lambda record: record.content,
    "ttl": lambda record: record.ttl,
    "proxied": lambda record: record.proxied,
}


@_route("GET", "/zones/<zone_id>/dns_records")
def _list_records(sim: CloudflareSimulator, request: Request, arguments: dict[str, str]) -> dict[str, Any]:
    zone = sim._zone(request, arguments["zone_id"], write=False)
    query = request.args
    page = _number(query, "page", 1, 1, 10**9)
    per_page = _number(query, "per_page", 100, 1, MAX_PER_PAGE)
    order = ORDERS.get(query.get("order", "type"))
    if order is None or query.get("direction", "asc") not in ("asc", "desc"):
        raise ApiError(400, VALIDATION, "Invalid order")
    if query.get("match", "all") not in ("all", "any") or query.get("tag_match", "all") not in ("all", "any"):
        raise ApiError(400, VALIDATION, "Invalid match")
    found = [record for record in sim.records(zone.id) if _wanted(record, query)]
    found.sort(key=order, reverse=query.get("direction") == "desc")
    return _page([sim.record_json(record) for record in found], page, per_page)


@_route("GET", "/zones/<zone_id>/dns_records/usage")
def _usage(sim: CloudflareSimulator, request: Request, arguments: dict[str, str]) -> dict[str, Any]:
    zone = sim._zone(request, arguments["zone_id"], write=False)
    return {"result": {"record_quota": sim.quota, "record_usage": len(sim.records(zone.id))}}


@_route("GET", "/zones/<zone_id>/dns_records/<record_id>")
def _get_record(sim: CloudflareSimulator, request: Request, arguments: dict[str, str]) -> dict[str, Any]:
    zone = sim._zone(request, arguments["zone_id"], write=False)
    return {"result": sim.record_json(sim._existing(sim._records, zone, arguments["record_id"]))}


@_route("POST", "/zones/<zone_id>/dns_records")
def _create_record(sim: CloudflareSimulator, request: Request, arguments: dict[str, str]) -> dict[str, Any]:
    zone = sim._zone(request, arguments["zone_id"], write=True)
    spec = _body(request)
    sim._remember()
    return {"result": sim.record_json(sim._create(sim._records, zone, spec))}


@_route("PATCH", "/zones/<zone_id>/dns_records/<record_id>")
def _patch_record(sim: CloudflareSimulator, request: Request, arguments: dict[str, str]) -> dict[str, Any]:
    zone = sim._zone(request, arguments["zone_id"], write=True)
    spec = _body(request)
    sim._remember()
    return {"result": sim.record_json(sim._patch(sim._records, zone, arguments["record_id"], spec))}


@_route("PUT", "/zones/<zone_id>/dns_records/<record_id>")
def _put_record(sim: CloudflareSimulator, request: Request, arguments: dict[str, str]) -> dict[str, Any]:
    zone = sim._zone(request, arguments["zone_id"], write=True)
    spec = _body(request)
    sim._remember()
    return {"result": sim.record_json(sim._put(sim._records, zone, arguments["record_id"], spec))}


@_route("DELETE", "/zones/<zone_id>/dns_records/<record_id>")
def _delete_record(sim: CloudflareSimulator, request: Request, arguments: dict[str, str]) -> dict[str, Any]:
    zone = sim._zone(request, arguments["zone_id"], write=True)
    sim._remember()
    return {"result": {"id": sim._delete(sim._records, zone, arguments["record_id"]).id}}


def _items(body: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    items = body.get(key)
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ApiError(400, VALIDATION, f"{key} must be a list of objects.")
    for item in items:
        if key != "posts" and not (isinstance(item.get("id"), str) and HEX32.fullmatch(item["id"])):
            raise ApiError(400, VALIDATION, f"{key} need ids.")
    return items


@_route("POST", "/zones/<zone_id>/dns_records/batch")
def _batch(sim: CloudflareSimulator, request: Request, arguments: dict[str, str]) -> dict[str, Any]:
    zone = sim._zone(request, arguments["zone_id"], write=True)
    body = _body(request)
    deletes, patches, puts, posts = (_items(body, key) for key in ("deletes", "patches", "puts", "posts"))
    if len(deletes) + len(patches) + len(puts) + len(posts) > sim.limits.batch:
        raise ApiError(400, VALIDATION, f"A batch may change at most {sim.limits.batch} records.")
    records = dict(sim._records)
    result = {
        "deletes": [sim._delete(records, zone, item["id"]) for item in deletes],
        "patches": [sim._patch(records, zone, item["id"], item) for item in patches],
        "puts": [sim._put(records, zone, item["id"], item) for item in puts],
        "posts": [sim._create(records, zone, item) for item in posts],
    }
    sim._remember()
    sim._records = records
    return {"result": {key: [sim.record_json(record) for record in done] for key, done in result.items()}}
