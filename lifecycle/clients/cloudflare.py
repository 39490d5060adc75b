"""One Cloudflare zone and its records.

Source: Cloudflare API v4, "DNS Records for a Zone" and "Zone". There is no official list of error codes;
these are the ones that public trackers and recordings show. Messages change over the years, codes do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from lifecycle.clients.http import Answer, JsonClient
from lifecycle.errors import ApiError, AuthError, ConflictError, NotFoundError, ResponseError, TransientError
from lifecycle.model import Record, RecordSpec

SERVICE = "Cloudflare"

Parsed = TypeVar("Parsed")

_ID = re.compile(r"[0-9a-f]{1,32}")

# The API's default; the largest useful one is 5,000, and one name has a handful.
_RECORDS_PER_PAGE = 100
_ZONES_PER_PAGE = 50

# What each group of codes means, the most telling first.
_MEANINGS: tuple[tuple[frozenset[int], type[ApiError], str], ...] = (
    (
        frozenset({6003, 9106}),
        AuthError,
        "CLOUDFLARE_API_TOKEN is not an API token; is it a global API key, or are there quotes around it?",
    ),
    (
        frozenset({9109, 10001}),
        AuthError,
        "CLOUDFLARE_API_TOKEN is not valid, or has expired; make one with Zone / DNS / Edit",
    ),
    (
        frozenset({10000}),
        AuthError,
        "CLOUDFLARE_API_TOKEN may not do this; it needs Zone / DNS / Edit, and has to cover CLOUDFLARE_ZONE_ID",
    ),
    (
        frozenset({7000, 7003}),
        ResponseError,
        "CLOUDFLARE_ZONE_ID is no zone's; it has 32 hex digits and stands on the zone's overview page",
    ),
    (frozenset({1038}), ResponseError, "zones under this top-level domain cannot be changed through the API"),
    (frozenset({81044}), NotFoundError, "the record is gone"),
    (
        frozenset({81053, 81054, 81057, 81058}),
        ConflictError,
        "another record stands at the name; the next look will tell which, or CLOUDFLARE_ZONE_ID is another domain's",
    ),
    (frozenset({81045}), ConflictError, "the zone has as many records as its plan allows; delete some"),
)

# For an answer with other codes, or with none.
_STATUS_MEANINGS: dict[int, tuple[type[ApiError], str]] = {
    401: (AuthError, "CLOUDFLARE_API_TOKEN was refused"),
    403: (AuthError, "CLOUDFLARE_API_TOKEN was refused"),
    404: (NotFoundError, "there is no such record or zone; is CLOUDFLARE_ZONE_ID right?"),
}

_NOT_FOUND = 404
_THROTTLED = 429
_CLIENT_ERRORS = range(400, 500)


class Cloudflare:
    """The zone that a domain's records belong to.

    Args:
        client: its base address ends in `/client/v4`.
        domain: the domain; the zone is the longest of its suffixes that Cloudflare has.
        zone_id: the zone, when it is known; saves the search.
    """

    def __init__(self, client: JsonClient, *, domain: str, zone_id: str | None = None) -> None:
        self._client = client
        self._domain = domain
        self._zone_id = zone_id
        self._zone_name: str | None = None
        # Made under another name than was asked for, and not deleted again yet.
        self._strays: list[Record] = []

    def records(self, name: str) -> list[Record]:
        """Everything at exactly this name, of all types.

        Args:
            name: the full name, lower case, no trailing dot.

        Raises:
            ApiError: also when it cannot be told whether that was everything.

        Source: GET /zones/{zone}/dns_records.
        """
        records = self._pages(f"{self._zone_path()}/dns_records", {"name": name}, _RECORDS_PER_PAGE, _parse_record)
        return [record for record in records if record.name == name]

    def records_commented(self, comment: str) -> list[Record]:
        """Every record of the zone with this comment; Cloudflare compares without regard to case.

        Raises:
            ApiError: also when it cannot be told whether that was everything.

        Source: GET /zones/{zone}/dns_records?comment.exact=.
        """
        path = f"{self._zone_path()}/dns_records"
        return self._pages(path, {"comment.exact": comment}, _RECORDS_PER_PAGE, _parse_record)

    def zone_name(self) -> str:
        """The zone's own name, which is its apex.

        Source: GET /zones/{zone}.
        """
        if self._zone_name is None:
            path = self._zone_path()
            self._zone_name = self._one("GET", path, lambda zone: _plain_name(zone["name"]))
        return self._zone_name

    def change(
        self,
        *,
        deletes: Sequence[Record] = (),
        updates: Sequence[tuple[Record, RecordSpec]] = (),
        creates: Sequence[RecordSpec] = (),
    ) -> None:
        """Make all of these changes or none; several go as one transaction.

        Raises:
            ConflictError: something else stands at the name, or somebody changed a record first.
            NotFoundError: a record to be changed, or one of several to be deleted, is gone.
            ResponseError: what Cloudflare made of it is not what was asked for.

        Source: POST, PATCH and DELETE below /zones/{zone}/dns_records, and POST …/batch, which deletes,
        then changes, then creates, and takes 200 records on every plan.
        """
        path = f"{self._zone_path()}/dns_records"
        patches = [(record, spec, spec.differences(record)) for record, spec in updates]
        bodies = [_create_body(spec) for spec in creates]
        created: list[Record] = []
        changed: list[Record] = []
        self._delete_strays(path)
        match (deletes, patches, bodies):
            case ([], [], []):
                return
            case ([record], [], []):
                self._delete(path, record.id)
            case ([], [(record, _, fields)], []):
                changed = [self._one("PATCH", f"{path}/{record.id}", _parse_record, body=fields)]
            case ([], [], [body]):
                created = [self._one("POST", path, _parse_record, body=body)]
            case _:
                batch = {
                    "deletes": [{"id": record.id} for record in deletes],
                    "patches": [{"id": record.id, **fields} for record, _, fields in patches],
                    "posts": bodies,
                }
                created, changed = self._one(
                    "POST",
                    f"{path}/batch",
                    _parse_batch,
                    body={operation: items for operation, items in batch.items() if items},
                )
        self._take_back_strays(path, created, {spec.name for spec in creates})
        _check(path, created, creates)
        _check(path, changed, [spec for _, spec, _ in patches])

    def _delete(self, path: str, record_id: str) -> None:
        try:
            self._one("DELETE", f"{path}/{record_id}", lambda _result: None)
        except NotFoundError:
            # Somebody else did it.
            return

    def _take_back_strays(self, path: str, created: Sequence[Record], names: Collection[str]) -> None:
        """Take back what was made under another name: the zone's is appended to a full name that is not its own."""
        strays = [record for record in created if record.name not in names]
        self._strays += strays
        self._delete_strays(path)
        if strays:
            raise ResponseError(
                f"Cloudflare made {strays[0].name} of {', '.join(sorted(names))}: the zone is not that name's; the "
                "record was deleted again. Set CLOUDFLARE_ZONE_ID to the zone of DOMAIN_NAME, or leave it out",
                service=SERVICE,
            )

    def _delete_strays(self, path: str) -> None:
        """Delete them one by one; what fails is for the next change."""
        while self._strays:
            self._delete(path, self._strays[0].id)
            del self._strays[0]

    def _zone_path(self) -> str:
        if self._zone_id is None:
            self._zone_id, self._zone_name = self._find_zone()
        return f"/zones/{self._zone_id}"

    def _find_zone(self) -> tuple[str, str]:
        """Look for the zone from the whole domain upwards; an error ends the search.

        Source: GET /zones?name=.
        """
        labels = self._domain.split(".")
        for start in range(len(labels) - 1):
            name = ".".join(labels[start:])
            zones = [
                zone for zone in self._pages("/zones", {"name": name}, _ZONES_PER_PAGE, _parse_zone) if zone[1] == name
            ]
            if len(zones) > 1:
                raise ResponseError(
                    f"Cloudflare has {len(zones)} zones called {name}; set CLOUDFLARE_ZONE_ID to the one that is "
                    f"meant: {', '.join(sorted(zone_id for zone_id, _ in zones))}",
                    service=SERVICE,
                )
            if zones:
                return zones[0]
        raise ResponseError(
            f"Cloudflare shows this token no zone for DOMAIN_NAME {self._domain}; is the domain right, and does "
            "the token cover its zone? Set CLOUDFLARE_ZONE_ID to save the search",
            service=SERVICE,
        )

    def _pages(
        self, path: str, params: Mapping[str, str], per_page: int, parse: Callable[[Any], Parsed]
    ) -> list[Parsed]:
        items: list[Parsed] = []
        page = 1
        while True:
            answer = self._client.send("GET", path, params={**params, "page": str(page), "per_page": str(per_page)})
            match answer.json:
                case {
                    "success": True,
                    "result": list(results),
                    "result_info": {"total_pages": int(pages), "total_count": int(count)},
                }:
                    items += _parsed(f"GET {path}", partial(_each, results, parse))
                case _:
                    raise _no_sense(f"GET {path}")
            if page >= pages or not results:
                break
            page += 1
        if len(items) != count:
            raise ResponseError(
                f"Cloudflare says that GET {path} has {count} items and gave {len(items)}; nothing was changed",
                service=SERVICE,
            )
        return items

    def _one(self, method: str, path: str, parse: Callable[[Any], Parsed], *, body: Any = None) -> Parsed:
        answer = self._client.send(method, path, body=body)
        match answer.json:
            case {"success": True, "result": dict(result)}:
                return _parsed(f"{method} {path}", partial(parse, result))
        raise _no_sense(f"{method} {path}")


def explain(what: str, answer: Answer) -> ApiError | None:
    """What a refusal by Cloudflare means, by its codes.

    Returns:
        None when the status says it all: throttled, or trouble at Cloudflare.
    """
    if answer.status == _THROTTLED or answer.status not in _CLIENT_ERRORS:
        return None
    codes = set(_codes(answer.json))
    ray = answer.headers.get("cf-ray")
    told = f"{what}: {answer.status}, code {', '.join(map(str, sorted(codes))) or 'none'}"
    if ray:
        told += f", cf-ray {ray}"

    if answer.status == _NOT_FOUND and not codes:
        return TransientError(
            f"the answer to {what} is a 404 that is not Cloudflare's own: a proxy's, or CLOUDFLARE_API_URL points "
            "elsewhere",
            service=SERVICE,
            status=answer.status,
        )
    by_status = _STATUS_MEANINGS.get(answer.status, (ResponseError, "the request was refused"))
    by_code = [(kind, meaning) for group, kind, meaning in _MEANINGS if codes & group]
    kind, meaning = [*by_code, by_status][0]
    return kind(f"Cloudflare: {meaning} ({told})", service=SERVICE, status=answer.status)


def _codes(body: Any) -> list[int]:
    """Every code of an answer; the telling one is sometimes in the chain below another."""
    errors = _list(body, "errors")
    causes = [cause for error in errors for cause in _list(error, "error_chain")]
    return [item["code"] for item in errors + causes if isinstance(item, dict) and isinstance(item.get("code"), int)]


def _list(value: Any, member: str) -> list[Any]:
    items = value.get(member) if isinstance(value, dict) else None
    return items if isinstance(items, list) else []


def _check(path: str, records: Sequence[Record], specs: Sequence[RecordSpec]) -> None:
    """Compare what Cloudflare says it did with what was asked for."""
    if len(records) != len(specs):
        raise _no_sense(f"a change of {path}")
    for record, spec in zip(records, specs, strict=True):
        if record.name != spec.name:
            raise ConflictError(
                f"Cloudflare: the {record.type} record {spec.name} got another name, {record.name}, since it was read; "
                "the next look will tell what stands there",
                service=SERVICE,
            )
        if spec.differences(record):
            raise ResponseError(
                f"Cloudflare did not take all of a change to {record.type} {record.name}: "
                f"{', '.join(sorted(spec.differences(record)))} still differ",
                service=SERVICE,
            )


def _create_body(spec: RecordSpec) -> dict[str, Any]:
    return {
        "type": spec.type,
        "name": spec.name,
        "content": str(spec.address),
        "ttl": spec.ttl_s,
        # Always said: where private routing is on, a proxied VPN address would go through a tunnel.
        "proxied": False,
        "comment": spec.comment,
    }


def _parse_record(payload: Any) -> Record:
    ttl = payload.get("ttl")
    return Record(
        id=_identifier(payload["id"]),
        name=_plain_name(payload["name"]),
        type=_text(payload["type"]),
        content=_text(payload.get("content") or ""),
        ttl_s=ttl if isinstance(ttl, int) else 1,
        proxied=payload.get("proxied") is True,
        comment=_text(payload.get("comment") or ""),
    )


def _parse_batch(payload: Any) -> tuple[list[Record], list[Record]]:
    return (
        [_parse_record(item) for item in payload.get("posts") or ()],
        [_parse_record(item) for item in payload.get("patches") or ()],
    )


def _parse_zone(payload: Any) -> tuple[str, str]:
    return _identifier(payload["id"]), _plain_name(payload["name"])


def _plain_name(value: Any) -> str:
    return _text(value).lower().removesuffix(".")


def _identifier(value: Any) -> str:
    """An id as it may enter a path: nothing else is Cloudflare's."""
    text = _text(value)
    if not _ID.fullmatch(text):
        raise ValueError("an id has up to 32 hex digits")
    return text


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text is text")
    return value


def _each(items: Sequence[Any], parse: Callable[[Any], Parsed]) -> list[Parsed]:
    return [parse(item) for item in items]


def _parsed(what: str, parse: Callable[[], Parsed]) -> Parsed:
    try:
        return parse()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _no_sense(what) from None


def _no_sense(what: str) -> ResponseError:
    return ResponseError(
        f"the answer to {what} is not what Cloudflare says; is CLOUDFLARE_API_URL right?", service=SERVICE
    )
