"""A simulated Cloudflare: the zones, DNS records, tokens and rate limits of API version 4.

Requests that the program does not need are refused, even if Cloudflare accepts them.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

from tests.simulators import faults
from tests.simulators.dns import (
    HEX32,
    MAX_RECORDS,
    VALIDATION,
    ApiError,
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
MALFORMED_HEADERS: Final = 6003
NO_ROUTE: Final = 7003
NO_AUTHENTICATION: Final = 9106
INVALID_TOKEN: Final = 9109
AUTHENTICATION: Final = 10000
THROTTLED: Final = 10429

AUTHORIZATION_FORM: Final = re.compile(r"Bearer [-A-Za-z0-9._~+/]+=*")
TOKEN_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"

MAX_BATCH: Final = 200
"""The maximum number of changes in a batch, with the free plan."""

MAX_PAGE: Final = 10**9

MAX_RECORDS_PER_PAGE: Final = 5000
"""The largest value that is known to work. Cloudflare's schema allows a thousand times as much."""

Permission = Literal["edit", "read"]
Body = dict[str, Any]
Handler = Callable[["Request", Mapping[str, str]], Body]

ROUTES: Final[tuple[tuple[str, str, str], ...]] = (
    ("GET", "/zones", "_list_zones"),
    ("GET", "/zones/<zone_id>", "_get_zone"),
    ("GET", "/zones/<zone_id>/dns_records", "_list_records"),
    ("POST", "/zones/<zone_id>/dns_records", "_create_record"),
    ("POST", "/zones/<zone_id>/dns_records/batch", "_batch"),
    ("GET", "/zones/<zone_id>/dns_records/<record_id>", "_get_record"),
    ("PATCH", "/zones/<zone_id>/dns_records/<record_id>", "_patch_record"),
    ("DELETE", "/zones/<zone_id>/dns_records/<record_id>", "_delete_record"),
)

PERMISSIONS: Final[Mapping[Permission, list[str]]] = {
    "edit": ["#dns_records:edit", "#dns_records:read", "#zone:read"],
    "read": ["#dns_records:read", "#zone:read"],
}

COMMENT_FILTERS: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "comment.exact": str.__eq__,
    "comment.startswith": str.startswith,
}
"""Query parameters that select records by their comment, and how the comment is compared with the value."""

ROUTER: Final = Router((method, PREFIX + path, handler) for method, path, handler in ROUTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """A zone."""

    id: str
    name: str


@dataclass(slots=True, kw_only=True)
class _RateLimit:
    """After too many requests in a window, all requests are blocked for the length of a window.

    Attributes:
        requests: the allowed number of requests in a window.
        per: the length of the window.
        retry_after: True if responses to blocked requests have a Retry-After header.
        since: the start of the current window.
        count: the number of requests in the current window.
        blocked_until: the end of the block; None = requests are not blocked.
    """

    requests: int
    per: timedelta
    retry_after: bool
    since: datetime
    count: int = 0
    blocked_until: datetime | None = None

    def blocks(self, now: datetime) -> bool:
        """Count a request, and return True if it exceeds the limit."""
        if now >= (self.blocked_until or self.since + self.per):
            self.blocked_until, self.since, self.count = None, now, 0
        self.count += 1
        if self.blocked_until is None and self.count > self.requests:
            self.blocked_until = now + self.per
        return self.blocked_until is not None

    def response(self, now: datetime) -> Response:
        """Return the response to a blocked request."""
        error = {"code": THROTTLED, "message": "Please wait and consider throttling your request speed"}
        response = json_response({"success": False, "errors": [error]}, 429)
        if self.retry_after and self.blocked_until is not None:
            # Rounded up.
            response.headers["retry-after"] = str(-(-(self.blocked_until - now) // timedelta(seconds=1)))
        return response


class CloudflareSimulator(Upstream):
    """A Cloudflare account with one token."""

    def __init__(self, *, now: Callable[[], datetime] | None = None, quota: int = MAX_RECORDS) -> None:
        """Start an account without zones.

        Args:
            now: returns the time in UTC; the real time if omitted.
            quota: the maximum number of records in a zone; the number for the free plan if omitted.
        """
        super().__init__()
        self._now = now or (lambda: datetime.now(UTC))
        self._random = random.Random(1)
        self._zones: dict[str, Zone] = {}
        self._records: dict[str, Record] = {}
        self._previous_records: dict[str, Record] = {}
        self._secrets: list[str] = []
        self._rate_limit: _RateLimit | None = None
        self.quota = quota
        self.token = self.set_token()

    # --- Actions of a test or of the demo -----------------------------------------------------------

    def set_token(self, *, permission: Permission = "edit") -> str:
        """Replace the token by one with this permission for DNS records, and return it. The old one becomes invalid."""
        with self.lock:
            self.token = "".join(self._random.choices(TOKEN_ALPHABET, k=40))
            self._permission: Permission = permission
            self._secrets.append(self.token)
            return self.token

    def secrets(self) -> list[str]:
        """Return all tokens that were accepted at any time."""
        with self.lock:
            return list(self._secrets)

    def limit_rate(self, requests: int, per: timedelta = timedelta(minutes=5), *, retry_after: bool = True) -> None:
        """Limit the number of requests in a window of time.

        Args:
            requests: the allowed number of requests in a window; 0 = refuse every request.
            per: the length of a window.
            retry_after: True if the responses with status 429 have a Retry-After header.
        """
        with self.lock:
            self._rate_limit = _RateLimit(requests=requests, per=per, retry_after=retry_after, since=self._now())

    def remove_rate_limit(self) -> None:
        """Remove the rate limit."""
        with self.lock:
            self._rate_limit = None

    def add_zone(self, name: str) -> str:
        """Add a zone, such as `example.com`, and return its id. Several zones can have the same name."""
        with self.lock:
            zone_id = self._new_id()
            self._zones[zone_id] = Zone(id=zone_id, name=name.lower())
            return zone_id

    def remove_zone(self, zone_id: str) -> None:
        """Remove a zone and its records."""
        with self.lock:
            del self._zones[zone_id]
            self._records = {key: record for key, record in self._records.items() if record.zone_id != zone_id}

    def add_record(self, zone_id: str, **fields: Any) -> str:
        """Add a record with these fields of the API, as in the dashboard, and return its id.

        Raises:
            ApiError: the zone refuses the record.
        """
        with self.lock, self._transaction(self._zones[zone_id]) as records:
            return records.create(self._new_id(), fields).id

    def add_workers_domain(self, zone_id: str, name: str) -> str:
        """Add the record that Cloudflare creates for the custom domain of a Worker, and return its id."""
        record_id = self.add_record(zone_id, type="AAAA", name=name, content="100::", proxied=True)
        with self.lock:
            self._records[record_id] = replace(self._records[record_id], read_only=True)
        return record_id

    def change_record(self, record_id: str, **fields: Any) -> None:
        """Change a record's fields, as in the dashboard."""
        with self.lock, self._transaction(self._zones[self._records[record_id].zone_id]) as records:
            records.patch(record_id, fields)

    def remove_record(self, record_id: str) -> None:
        """Remove a record, as in the dashboard."""
        with self.lock, self._transaction(self._zones[self._records[record_id].zone_id]) as records:
            records.delete(record_id)

    def records(self, zone_id: str, name: str | None = None) -> list[Record]:
        """Return the records of a zone, oldest first. If `name` is set, return only the records with this full name."""
        with self.lock:
            return [
                record
                for record in self._records.values()
                if record.zone_id == zone_id and (name is None or record.name == name.lower())
            ]

    # --- From request to response -------------------------------------------------------------------

    def answer(self, request: Request, *, from_previous_state: bool) -> Response:
        """Execute a request on the current records, or on the previous ones. The caller holds the lock."""
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
        response.headers["cf-ray"] = f"{self._random.getrandbits(64):016x}-FRA"
        return response

    def _execute(self, request: Request) -> Response:
        try:
            return json_response({"success": True, "errors": [], "messages": [], **self._dispatch(request)})
        except ApiError as error:
            return json_response(_error_body(error.code, error.message), error.status)

    def _dispatch(self, request: Request) -> Body:
        header = request.headers.get("authorization")
        if header is None:
            message = "Missing X-Auth-Key, X-Auth-Email or Authorization headers"
            raise ApiError(400, NO_AUTHENTICATION, message)
        if AUTHORIZATION_FORM.fullmatch(header) is None:
            raise ApiError(400, MALFORMED_HEADERS, "Invalid request headers")
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

    # --- Zones --------------------------------------------------------------------------------------

    def _check_token(self, request: Request) -> None:
        token = request.headers["authorization"].removeprefix("Bearer ")
        if token != self.token:
            raise ApiError(403, INVALID_TOKEN, "Invalid access token")

    def _list_zones(self, request: Request, _arguments: Mapping[str, str]) -> Body:
        self._check_token(request)
        query = _query(request, {"name", "page", "per_page"})
        page = _number(query, "page", default=1, low=1, high=MAX_PAGE)
        per_page = _number(query, "per_page", default=20, low=5, high=50)
        name = query.get("name").lower()
        if ":" in name:
            raise ApiError(400, VALIDATION, "The simulator supports no filters such as `starts_with:` for names.")
        zones = [zone for zone in self._zones.values() if name in ("", zone.name)]
        return _page([self._zone_json(zone) for zone in zones], page, per_page)

    def _get_zone(self, request: Request, arguments: Mapping[str, str]) -> Body:
        return {"result": self._zone_json(self._zone(request, arguments, write=False))}

    def _zone_json(self, zone: Zone) -> dict[str, Any]:
        return {
            "id": zone.id,
            "name": zone.name,
            "status": "active",
            "paused": False,
            "type": "full",
            "development_mode": 0,
            "account": {"id": "1" * 32, "name": "Example"},
            "owner": {"id": None, "type": "user", "email": None},
            "plan": {"id": "0" * 32, "name": "Free Website", "legacy_id": "free"},
            "permissions": PERMISSIONS[self._permission],
            "created_on": "2024-01-01T00:00:00.123456Z",
            "modified_on": "2024-01-01T00:00:00.123456Z",
        }

    # --- Records ------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def _zone(self, request: Request, arguments: Mapping[str, str], *, write: bool) -> Zone:
        """Return the zone of a request. A write with a token that can only read is refused."""
        self._check_token(request)
        zone = self._zones.get(arguments["zone_id"])
        if zone is None or (write and self._permission != "edit"):
            raise ApiError(403, AUTHENTICATION, "Authentication error")
        return zone

    def _zone_records(self, zone: Zone, records: dict[str, Record]) -> ZoneRecords:
        return ZoneRecords(
            records=records,
            zone_id=zone.id,
            zone_name=zone.name,
            quota=self.quota,
            now=self._now(),
        )

    @contextmanager
    def _transaction(self, zone: Zone) -> Iterator[ZoneRecords]:
        """Run a block that changes the records of a zone. An exception in the block undoes the changes."""
        records = dict(self._records)
        yield self._zone_records(zone, records)
        self._previous_records, self._records = self._records, records

    def _list_records(self, request: Request, arguments: Mapping[str, str]) -> Body:
        zone = self._zone(request, arguments, write=False)
        query = _query(request, {"name", *COMMENT_FILTERS, "match", "page", "per_page"})
        page = _number(query, "page", default=1, low=1, high=MAX_PAGE)
        per_page = _number(query, "per_page", default=100, low=1, high=MAX_RECORDS_PER_PAGE)
        records = sorted(
            (record for record in self.records(zone.id) if _matches(record, query)), key=lambda record: record.type
        )
        return _page([record.json() for record in records], page, per_page)

    def _get_record(self, request: Request, arguments: Mapping[str, str]) -> Body:
        zone = self._zone(request, arguments, write=False)
        return {"result": self._zone_records(zone, self._records).existing(arguments["record_id"]).json()}

    def _create_record(self, request: Request, arguments: Mapping[str, str]) -> Body:
        with self._transaction(self._zone(request, arguments, write=True)) as records:
            return {"result": records.create(self._new_id(), _read_body(request)).json()}

    def _patch_record(self, request: Request, arguments: Mapping[str, str]) -> Body:
        with self._transaction(self._zone(request, arguments, write=True)) as records:
            return {"result": records.patch(arguments["record_id"], _read_body(request)).json()}

    def _delete_record(self, request: Request, arguments: Mapping[str, str]) -> Body:
        with self._transaction(self._zone(request, arguments, write=True)) as records:
            return {"result": {"id": records.delete(arguments["record_id"]).id}}

    def _batch(self, request: Request, arguments: Mapping[str, str]) -> Body:
        with self._transaction(self._zone(request, arguments, write=True)) as records:
            body = _read_body(request)
            operations = ("deletes", "patches", "posts")
            if body.keys() - operations:
                raise ApiError(400, VALIDATION, f"The simulator supports only {', '.join(operations)}.")
            deletes, patches, posts = (_items(body, operation) for operation in operations)
            if len(deletes) + len(patches) + len(posts) > MAX_BATCH:
                raise ApiError(400, VALIDATION, f"A batch may change at most {MAX_BATCH} records.")
            result = {
                "deletes": [records.delete(item["id"]) for item in deletes],
                "patches": [records.patch(item["id"], item) for item in patches],
                "posts": [records.create(self._new_id(), item) for item in posts],
            }
            return {"result": {key: [record.json() for record in changed] for key, changed in result.items()}}


def refusal(status: int, code: int, message: str = "refused") -> Fault:
    """Return a fault that responds to any request with one of Cloudflare's errors."""
    return faults.answer(status, json.dumps(_error_body(code, message)))


def _error_body(code: int, message: str) -> Body:
    return {"result": None, "success": False, "errors": [{"code": code, "message": message}], "messages": []}


# --- Reading requests -------------------------------------------------------------------------------


def _no_route(request: Request, status: int) -> ApiError:
    message = f"Could not route to {request.path}, perhaps your object identifier is invalid?"
    return ApiError(status, NO_ROUTE, message)


def _read_body(request: Request) -> dict[str, Any]:
    try:
        document = json.loads(request.body or b"null")
    except ValueError as error:
        raise ApiError(400, VALIDATION, "Malformed JSON in request body") from error
    if not isinstance(document, dict):
        raise ApiError(400, VALIDATION, "Request body must be an object")
    return document


def _items(body: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return one list of a batch. In all lists except `posts`, each item must have an id."""
    items = body.get(key) or []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ApiError(400, VALIDATION, f"{key} must be a list of objects.")
    for item in items:
        if key != "posts" and HEX32.fullmatch(str(item.get("id"))) is None:
            raise ApiError(400, VALIDATION, f"{key} need ids.")
    return items


def _query(request: Request, known: set[str]) -> Parameters:
    """Return the parameters of a request. Refuse the request if it has parameters that are not in `known`."""
    query = request.parameters
    if unknown := query.names - known:
        raise ApiError(400, VALIDATION, f"The simulator does not support {', '.join(sorted(unknown))}.")
    return query


def _number(query: Parameters, name: str, *, default: int, low: int, high: int) -> int:
    text = query.get(name, str(default))
    if re.fullmatch(r"[0-9]+", text) is None or not low <= int(text) <= high:
        raise ApiError(400, VALIDATION, f"{name} must be between {low} and {high}.")
    return int(text)


def _matches(record: Record, query: Parameters) -> bool:
    """Return True if a record matches all filters of a query, or any of them with `match=any`. Ignore case."""
    match = query.get("match", "all")
    if match not in ("all", "any"):
        raise ApiError(400, VALIDATION, "match is invalid.")
    results = [record.name == name.lower() for name in query.all("name")]
    for name, matches in COMMENT_FILTERS.items():
        results += [matches(record.comment.lower(), comment.lower()) for comment in query.all(name)]
    return any(results) if results and match == "any" else all(results)


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
