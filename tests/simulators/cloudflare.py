"""A simulated Cloudflare: the zones, DNS records, tokens and rate limits of API version 4."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from tests.simulators import faults
from tests.simulators.dns import (
    HEX32,
    LIMITS,
    VALIDATION,
    ApiError,
    Plan,
    Record,
    ZoneRecords,
)
from tests.simulators.faults import Fault
from tests.simulators.messages import (
    NoRouteError,
    Parameters,
    Request,
    Response,
    Router,
    WrongMethodError,
    json_response,
)
from tests.simulators.upstream import Upstream

__all__ = ["ApiError", "CloudflareSimulator", "Record", "refusal"]

PREFIX: Final = "/client/v4"

# Error codes that Cloudflare is known to return.
VERIFY_REFUSED: Final = 1000
MALFORMED_HEADERS: Final = 6003
MALFORMED_AUTHORIZATION: Final = 6111
NO_ROUTE_FOR_URI: Final = 7000
NO_ROUTE: Final = 7003
NO_AUTHENTICATION: Final = 9106
INVALID_TOKEN: Final = 9109
AUTHENTICATION: Final = 10000
THROTTLED: Final = 971

TOKEN_FORM: Final = re.compile(r"Bearer [-A-Za-z0-9._~+/]+=*")
TOKEN_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"

MAX_PAGE: Final = 10**9
MAX_RECORDS_PER_PAGE: Final = 5000
"""The largest value that is known to work. Cloudflare's schema allows a thousand times as much."""

Permission = Literal["edit", "read", "none"]
TokenStatus = Literal["active", "disabled", "expired"]
Body = dict[str, Any]
Handler = Callable[["Request", Mapping[str, str]], Body]

ROUTES: Final[tuple[tuple[str, str, str], ...]] = (
    ("GET", "/user/tokens/verify", "_verify_user_token"),
    ("GET", "/accounts/<account_id>/tokens/verify", "_verify_account_token"),
    ("GET", "/zones", "_list_zones"),
    ("GET", "/zones/<zone_id>", "_get_zone"),
    ("GET", "/zones/<zone_id>/dns_records", "_list_records"),
    ("POST", "/zones/<zone_id>/dns_records", "_create_record"),
    ("GET", "/zones/<zone_id>/dns_records/usage", "_usage"),
    ("POST", "/zones/<zone_id>/dns_records/batch", "_batch"),
    ("GET", "/zones/<zone_id>/dns_records/<record_id>", "_get_record"),
    ("PATCH", "/zones/<zone_id>/dns_records/<record_id>", "_patch_record"),
    ("PUT", "/zones/<zone_id>/dns_records/<record_id>", "_put_record"),
    ("DELETE", "/zones/<zone_id>/dns_records/<record_id>", "_delete_record"),
)

PERMISSIONS: Final[Mapping[Permission, list[str]]] = {
    "edit": ["#dns_records:edit", "#dns_records:read", "#zone:read"],
    "read": ["#dns_records:read", "#zone:read"],
    "none": [],
}


ROUTER: Final = Router((method, PREFIX + path, handler) for method, path, handler in ROUTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """A zone.

    Attributes:
        in_token_account: the zone is in the account of the token.
    """

    id: str
    name: str
    status: str
    in_token_account: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """An API token.

    Attributes:
        permission: the permission for DNS records.
        account_owned: the token belongs to the account, not to a user.
        zones: the ids of the zones for which it is valid; None = all zones of the account.
    """

    id: str
    value: str
    permission: Permission
    account_owned: bool
    status: TokenStatus
    zones: frozenset[str] | None


def _seconds(duration: timedelta) -> int:
    """Return the number of seconds, rounded up."""
    return -(-duration // timedelta(seconds=1))


@dataclass(slots=True, kw_only=True)
class _RateLimit:
    """A rate limit. After too many requests in a window, all requests are blocked for the length of a window.

    Attributes:
        requests: the allowed number of requests in a window.
        per: the length of the window.
        retry_after: responses to blocked requests have a Retry-After header.
        code: the error code of these responses.
        since: the start of the current window.
        count: the number of requests in the current window.
        blocked_until: the end of the block; None = requests are not blocked.
    """

    requests: int
    per: timedelta
    retry_after: bool
    code: int
    since: datetime
    count: int = 0
    blocked_until: datetime | None = None

    @property
    def _ends_at(self) -> datetime:
        return self.since + self.per if self.blocked_until is None else self.blocked_until

    def blocks(self, now: datetime) -> bool:
        """Count a request, and return True if it exceeds the limit."""
        if now >= self._ends_at:
            self.blocked_until, self.since, self.count = None, now, 0
        self.count += 1
        if self.blocked_until is None and self.count > self.requests:
            self.blocked_until = now + self.per
        return self.blocked_until is not None

    def headers(self, now: datetime) -> dict[str, str]:
        """Return the rate limit headers of every response."""
        remaining = max(0, self.requests - self.count)
        return {
            "ratelimit": f'"default";r={remaining};t={_seconds(self._ends_at - now)}',
            "ratelimit-policy": f'"default";q={self.requests};w={_seconds(self.per)}',
        }

    def response(self, now: datetime) -> Response:
        """Return the response to a blocked request."""
        body: Body = {
            "success": False,
            "errors": [{"code": self.code, "message": "Please wait and consider throttling your request speed"}],
        }
        # The bodies of Cloudflare's two error codes differ.
        if self.code == THROTTLED:
            body |= {"messages": [], "result": None}
        response = json_response(body, 429)
        if self.retry_after and self.blocked_until is not None:
            response.headers["retry-after"] = str(_seconds(self.blocked_until - now))
        return response


class CloudflareSimulator(Upstream):
    """A Cloudflare account with one token."""

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
            token: the valid token; generated if omitted.
            plan: the plan of all zones.
            now: the clock, aware UTC; the real one if omitted.
            quota: maximum number of records in a zone; the plan's if omitted.
            account_owned: whether the token belongs to the account, not to a user.
            seed: for all random values.
        """
        super().__init__()
        self._now = now or (lambda: datetime.now(UTC))
        self._random = random.Random(seed)
        self._zones: dict[str, Zone] = {}
        self._records: dict[str, Record] = {}
        self._previous_records: dict[str, Record] = {}
        self._secrets: list[str] = []
        self._rate_limit: _RateLimit | None = None
        self.plan: Plan = plan
        self.quota = LIMITS[plan].records if quota is None else quota
        self.account_id = self._new_id()
        self.token = self.set_token(token, account_owned=account_owned)

    # --- Actions of a test or of the demo -----------------------------------------------------------

    def set_token(
        self,
        value: str | None = None,
        *,
        permission: Permission = "edit",
        account_owned: bool = False,
        status: TokenStatus = "active",
        zones: Iterable[str] | None = None,
    ) -> str:
        """Replace the token. The old one becomes invalid.

        Args:
            value: the token; generated if omitted.
            permission: the token's permission for DNS records.
            account_owned: whether it belongs to the account, not to a user.
            status: the token's status. Only an active token is accepted.
            zones: ids of the zones that it is valid for; None = all zones of the account.

        Returns:
            The token.
        """
        with self.lock:
            if value is None:
                prefix = "cfat_" if account_owned else ""
                value = prefix + "".join(self._random.choices(TOKEN_ALPHABET, k=40))
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
        """Return all tokens that were accepted at any time."""
        with self.lock:
            return list(self._secrets)

    def limit_rate(
        self,
        requests: int,
        per: timedelta = timedelta(minutes=5),
        *,
        retry_after: bool = True,
        code: Literal[971, 10429] = 10429,
    ) -> None:
        """Limit the number of requests in a window. After too many requests, all get a 429 for the length of a window.

        Args:
            requests: the allowed number; 0 = refuse every request.
            per: the length of a window.
            retry_after: whether the responses have a Retry-After header.
            code: the error code. Cloudflare returns one of these two.
        """
        with self.lock:
            now = self._now()
            self._rate_limit = _RateLimit(requests=requests, per=per, retry_after=retry_after, code=code, since=now)

    def remove_rate_limit(self) -> None:
        """Remove the rate limit."""
        with self.lock:
            self._rate_limit = None

    def add_zone(
        self,
        name: str,
        zone_id: str | None = None,
        status: str = "active",
        *,
        in_token_account: bool = True,
    ) -> str:
        """Add a zone.

        Args:
            name: such as `example.com`; several zones can have the same name.
            zone_id: 32 hex digits; generated if omitted.
            status: the zone's status, such as `pending`.
            in_token_account: whether it is in the token's account. The token cannot access zones of other accounts.

        Returns:
            The id of the zone.
        """
        with self.lock:
            zone_id = zone_id or self._new_id()
            if HEX32.fullmatch(zone_id) is None:
                raise ValueError("a zone id has 32 hex digits")
            self._zones[zone_id] = Zone(id=zone_id, name=name.lower(), status=status, in_token_account=in_token_account)
            return zone_id

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
        priority: int | None = None,
    ) -> str:
        """Add a record, as in the dashboard, and return its id.

        Raises:
            ApiError: the zone refuses it.
        """
        spec = {
            "type": type,
            "name": name,
            "content": content,
            "ttl": ttl,
            "proxied": proxied,
            "comment": comment,
            "tags": list(tags),
            "priority": priority,
        }
        with self.lock, self._changing(self._zones[zone_id]) as zone:
            return zone.create(self._new_id(), spec).id

    def add_workers_domain(self, zone_id: str, name: str) -> str:
        """Add the record that Cloudflare creates for the custom domain of a Worker, and return its id."""
        record_id = self.add_record(zone_id, type="AAAA", name=name, content="100::", proxied=True)
        with self.lock:
            self._records[record_id] = replace(self._records[record_id], read_only=True)
        return record_id

    def change_record(self, record_id: str, **fields: Any) -> None:
        """Change a record's fields, as in the dashboard."""
        with self.lock, self._changing(self._zones[self._records[record_id].zone_id]) as zone:
            zone.patch(record_id, fields)

    def remove_record(self, record_id: str) -> None:
        """Remove a record, as in the dashboard."""
        with self.lock, self._changing(self._zones[self._records[record_id].zone_id]) as zone:
            zone.delete(record_id)

    def records(self, zone_id: str, name: str | None = None) -> list[Record]:
        """Return the records of a zone, or of one full name, oldest first."""
        with self.lock:
            return [
                record
                for record in self._records.values()
                if record.zone_id == zone_id and (name is None or record.name == name.lower())
            ]

    # --- From request to response -------------------------------------------------------------------

    def answer(self, request: Request, *, from_previous_state: bool) -> Response:
        """Execute a request. The caller holds the lock."""
        if not from_previous_state:
            return self._answer(request)
        current, self._records = self._records, self._previous_records
        try:
            return self._answer(request)
        finally:
            self._records = current

    def _answer(self, request: Request) -> Response:
        now = self._now()
        if self._rate_limit is not None and self._rate_limit.blocks(now):
            response = self._rate_limit.response(now)
        else:
            response = self._execute(request)
        if self._rate_limit is not None:
            response.headers.update(self._rate_limit.headers(now))
        response.headers["cf-ray"] = f"{self._random.getrandbits(64):016x}-FRA"
        return response

    def _execute(self, request: Request) -> Response:
        try:
            response = json_response({"success": True, "errors": [], "messages": [], **self._dispatch(request)})
        except ApiError as error:
            response = json_response(_error_body(error.errors), error.status)
        response.headers["api-version"] = "2026-01-01"
        if request.method != "GET" and response.status == 200:
            response.headers["cf-auditlog-id"] = self._new_id()
        return response

    def _dispatch(self, request: Request) -> Body:
        header = request.headers.get("authorization")
        if header is None:
            message = "Missing X-Auth-Key, X-Auth-Email or Authorization headers"
            raise ApiError(400, NO_AUTHENTICATION, message)
        if TOKEN_FORM.fullmatch(header) is None:
            chain = (MALFORMED_AUTHORIZATION, "Invalid format for Authorization header")
            raise ApiError(400, MALFORMED_HEADERS, "Invalid request headers", chain=chain)
        try:
            name, arguments = ROUTER.match(request.method, request.path)
        except WrongMethodError as error:
            raise ApiError(405, VALIDATION, "Method not allowed for this endpoint") from error
        except NoRouteError as error:
            raise _no_route(request, 404) from error
        if any(HEX32.fullmatch(identifier) is None for identifier in arguments.values()):
            raise _no_route(request, 400)
        handler: Handler = getattr(self, name)
        return handler(request, arguments)

    # --- Tokens -------------------------------------------------------------------------------------

    def _is_token(self, request: Request) -> bool:
        return request.headers["authorization"].removeprefix("Bearer ") == self._token.value

    def _check_token(self, request: Request) -> None:
        if not self._is_token(request) or self._token.status != "active":
            raise ApiError(403, INVALID_TOKEN, "Invalid access token")

    def _verify_user_token(self, request: Request, _arguments: Mapping[str, str]) -> Body:
        return self._token_status(request, account_owned=False)

    def _verify_account_token(self, request: Request, arguments: Mapping[str, str]) -> Body:
        if arguments["account_id"] != self.account_id:
            raise ApiError(403, AUTHENTICATION, "Authentication error")
        return self._token_status(request, account_owned=True)

    def _token_status(self, request: Request, *, account_owned: bool) -> Body:
        token = self._token
        if not self._is_token(request) or token.account_owned != account_owned:
            raise ApiError(401, VERIFY_REFUSED, "Invalid API Token")
        state = "valid and active" if token.status == "active" else token.status
        return {
            "result": {"id": token.id, "status": token.status},
            "messages": [{"code": 10000, "message": f"This API Token is {state}", "type": None}],
        }

    # --- Zones --------------------------------------------------------------------------------------

    def _can_access(self, zone: Zone) -> bool:
        return zone.in_token_account and (self._token.zones is None or zone.id in self._token.zones)

    def _list_zones(self, request: Request, _arguments: Mapping[str, str]) -> Body:
        self._check_token(request)
        query = request.parameters
        page = _number(query, "page", default=1, low=1, high=MAX_PAGE)
        per_page = _number(query, "per_page", default=20, low=5, high=50)
        zones = [zone for zone in self._zones.values() if self._can_access(zone) and _matches_zone(zone, query)]
        if query.get("account.id", self.account_id) != self.account_id:
            zones = []
        return _page([self._zone_json(zone) for zone in zones], page, per_page)

    def _get_zone(self, request: Request, arguments: Mapping[str, str]) -> Body:
        self._check_token(request)
        zone = self._zones.get(arguments["zone_id"])
        if zone is None or not self._can_access(zone):
            raise ApiError(403, AUTHENTICATION, "Authentication error")
        return {"result": self._zone_json(zone)}

    def _zone_json(self, zone: Zone) -> dict[str, Any]:
        return {
            "id": zone.id,
            "name": zone.name,
            "status": zone.status,
            "paused": False,
            "type": "full",
            "development_mode": 0,
            "account": {"id": self.account_id, "name": "Example"},
            "owner": {"id": None, "type": "user", "email": None},
            "plan": {"id": "0" * 32, "name": "Plan", "legacy_id": self.plan},
            "permissions": PERMISSIONS[self._token.permission],
            "created_on": "2024-01-01T00:00:00.123456Z",
            "modified_on": "2024-01-01T00:00:00.123456Z",
        }

    # --- Records ------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def _zone(self, request: Request, arguments: Mapping[str, str], *, write: bool) -> Zone:
        """Return the zone of a request. A token without the permission to read or write its records is refused."""
        self._check_token(request)
        zone = self._zones.get(arguments["zone_id"])
        allowed = {"edit": True, "read": not write, "none": False}[self._token.permission]
        if zone is None or not self._can_access(zone) or not allowed:
            raise ApiError(403, AUTHENTICATION, "Authentication error")
        return zone

    def _zone_records(self, zone: Zone, records: dict[str, Record]) -> ZoneRecords:
        return ZoneRecords(
            records=records,
            zone_id=zone.id,
            zone_name=zone.name,
            limits=LIMITS[self.plan],
            quota=self.quota,
            now=self._now(),
        )

    @contextmanager
    def _changing(self, zone: Zone) -> Iterator[ZoneRecords]:
        """Run a block as a transaction. An exception in the block rolls it back."""
        records = dict(self._records)
        yield self._zone_records(zone, records)
        self._previous_records, self._records = self._records, records

    def _list_records(self, request: Request, arguments: Mapping[str, str]) -> Body:
        zone = self._zone(request, arguments, write=False)
        query = request.parameters
        page = _number(query, "page", default=1, low=1, high=MAX_PAGE)
        per_page = _number(query, "per_page", default=100, low=1, high=MAX_RECORDS_PER_PAGE)
        order = _choice(query, "order", "type", ("name", "content", "ttl", "proxied"))
        direction = _choice(query, "direction", "asc", ("desc",))
        records = [record for record in self.records(zone.id) if _matches_record(record, query)]
        records.sort(key=lambda record: getattr(record, order), reverse=direction == "desc")
        return _page([record.json() for record in records], page, per_page)

    def _get_record(self, request: Request, arguments: Mapping[str, str]) -> Body:
        zone = self._zone(request, arguments, write=False)
        return {"result": self._zone_records(zone, self._records).existing(arguments["record_id"]).json()}

    def _usage(self, request: Request, arguments: Mapping[str, str]) -> Body:
        zone = self._zone(request, arguments, write=False)
        return {"result": {"record_quota": self.quota, "record_usage": len(self.records(zone.id))}}

    def _create_record(self, request: Request, arguments: Mapping[str, str]) -> Body:
        with self._changing(self._zone(request, arguments, write=True)) as zone:
            return {"result": zone.create(self._new_id(), _read_body(request)).json()}

    def _patch_record(self, request: Request, arguments: Mapping[str, str]) -> Body:
        with self._changing(self._zone(request, arguments, write=True)) as zone:
            return {"result": zone.patch(arguments["record_id"], _read_body(request)).json()}

    def _put_record(self, request: Request, arguments: Mapping[str, str]) -> Body:
        with self._changing(self._zone(request, arguments, write=True)) as zone:
            return {"result": zone.put(arguments["record_id"], _read_body(request)).json()}

    def _delete_record(self, request: Request, arguments: Mapping[str, str]) -> Body:
        with self._changing(self._zone(request, arguments, write=True)) as zone:
            return {"result": {"id": zone.delete(arguments["record_id"]).id}}

    def _batch(self, request: Request, arguments: Mapping[str, str]) -> Body:
        with self._changing(self._zone(request, arguments, write=True)) as zone:
            body = _read_body(request)
            deletes, patches, puts, posts = (_items(body, key) for key in ("deletes", "patches", "puts", "posts"))
            limit = LIMITS[self.plan].batch
            if len(deletes) + len(patches) + len(puts) + len(posts) > limit:
                raise ApiError(400, VALIDATION, f"A batch may change at most {limit} records.")
            result = {
                "deletes": [zone.delete(item["id"]) for item in deletes],
                "patches": [zone.patch(item["id"], item) for item in patches],
                "puts": [zone.put(item["id"], item) for item in puts],
                "posts": [zone.create(self._new_id(), item) for item in posts],
            }
            return {"result": {key: [record.json() for record in records] for key, records in result.items()}}


def refusal(status: int, code: int, message: str = "refused") -> Fault:
    """Return a fault that responds to any request with one of Cloudflare's errors."""
    return faults.answer(status, json.dumps(_error_body([{"code": code, "message": message}])))


def _error_body(errors: list[dict[str, Any]]) -> Body:
    return {"result": None, "success": False, "errors": errors, "messages": []}


# --- Reading requests -------------------------------------------------------------------------------


def _no_route(request: Request, status: int) -> ApiError:
    message = f"Could not route to {request.path}, perhaps your object identifier is invalid?"
    return ApiError(status, NO_ROUTE, message, second_error=(NO_ROUTE_FOR_URI, "No route for that URI"))


def _read_body(request: Request) -> dict[str, Any]:
    try:
        document = json.loads(request.body or b"null")
    except ValueError as error:
        raise ApiError(400, VALIDATION, "Malformed JSON in request body") from error
    if not isinstance(document, dict):
        raise ApiError(400, VALIDATION, "Request body must be an object")
    return document


def _items(body: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return one list of a batch. The items of all lists but `posts` need an id."""
    items = body.get(key) or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ApiError(400, VALIDATION, f"{key} must be a list of objects.")
    for item in items:
        if key != "posts" and HEX32.fullmatch(str(item.get("id"))) is None:
            raise ApiError(400, VALIDATION, f"{key} need ids.")
    return items


def _number(query: Parameters, name: str, *, default: int, low: int, high: int) -> int:
    text = query.get(name, str(default))
    if re.fullmatch(r"[0-9]+", text) is None or not low <= int(text) <= high:
        raise ApiError(400, VALIDATION, f"{name} must be between {low} and {high}.")
    return int(text)


def _choice(query: Parameters, name: str, default: str, others: tuple[str, ...]) -> str:
    value = query.get(name, default)
    if value != default and value not in others:
        raise ApiError(400, VALIDATION, f"{name} is invalid.")
    return value


def _page(items: list[dict[str, Any]], page: int, per_page: int) -> Body:
    items_of_page = items[(page - 1) * per_page : page * per_page]
    return {
        "result": items_of_page,
        "result_info": {
            "page": page,
            "per_page": per_page,
            "count": len(items_of_page),
            "total_count": len(items),
            "total_pages": max(1, -(-len(items) // per_page)),
        },
    }


# --- Filters ----------------------------------------------------------------------------------------


def _equals(value: str, text: str) -> bool:
    return value == text


def _contains(value: str, text: str) -> bool:
    return text in value


MATCHERS: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "": _equals,
    ".exact": _equals,
    ".contains": _contains,
    ".startswith": str.startswith,
    ".endswith": str.endswith,
}
"""How a value is compared with a parameter, by the suffix of the parameter's name. Both are in lower case."""

ZONE_MATCHERS: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "equal": _equals,
    "not_equal": lambda value, text: value != text,
    "contains": _contains,
    "starts_with": str.startswith,
    "ends_with": str.endswith,
}
"""How a zone's name is compared, by the operator in the parameter `name`, such as `contains:example`."""


def _matches_zone(zone: Zone, query: Parameters) -> bool:
    operator, colon, name = query.get("name", "").partition(":")
    if not colon:
        operator, name = "equal", operator
    if operator not in ZONE_MATCHERS:
        raise ApiError(400, VALIDATION, "Invalid name filter")
    if name and not ZONE_MATCHERS[operator](zone.name, name.lower()):
        return False
    return query.get("status", zone.status) == zone.status


def _text_filters(record: Record, query: Parameters) -> Iterator[bool]:
    """Yield for each filter of the query whether the record matches, except for filters of tags."""
    values = {"name": record.name, "content": record.content, "comment": record.comment}
    for field, value in values.items():
        for suffix, matches in MATCHERS.items():
            yield from (matches(value.lower(), text.lower()) for text in query.all(field + suffix))
    yield from (record.type == type_ for type_ in query.all("type"))
    yield from (record.proxied == (proxied == "true") for proxied in query.all("proxied"))
    if "comment.present" in query:
        yield bool(record.comment)
    if "comment.absent" in query:
        yield not record.comment


def _tag_filters(record: Record, query: Parameters) -> Iterator[bool]:
    """Yield for each filter of tags in the query whether the record matches."""
    tags = [tag.lower().partition(":") for tag in record.tags]
    names = {name for name, _, _ in tags}
    for suffix, matches in MATCHERS.items():
        for parameter in query.all("tag" + suffix):
            name, _, text = parameter.lower().partition(":")
            yield any(tag_name == name and matches(value, text) for tag_name, _, value in tags)
    yield from (name.lower() in names for name in query.all("tag.present"))
    yield from (name.lower() not in names for name in query.all("tag.absent"))


def _matches_record(record: Record, query: Parameters) -> bool:
    """Return True if the record matches all filters, or any with the parameter `match=any` or `tag_match=any`."""
    results = {
        "match": list(_text_filters(record, query)),
        "tag_match": list(_tag_filters(record, query)),
    }
    return all(
        any(matches) if matches and _choice(query, parameter, "all", ("any",)) == "any" else all(matches)
        for parameter, matches in results.items()
    )
