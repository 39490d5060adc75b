"""Read the records of one Cloudflare zone.

Source: Cloudflare API v4, "DNS Records for a Zone" and "Zone".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from lifecycle.clients.cloudflare.errors import UPSTREAM
from lifecycle.clients.json_client import JsonClient
from lifecycle.domain.errors import ResponseError
from lifecycle.domain.model import Record

Parsed = TypeVar("Parsed")

_ID = re.compile(r"[0-9a-f]{1,32}")

# The API's default; the largest useful one is 5,000, and one name has a handful.
_RECORDS_PER_PAGE = 100
_ZONES_PER_PAGE = 50


class CloudflareReader:
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

    def records(self, name: str) -> list[Record]:
        """Everything at exactly this name, of all types.

        Args:
            name: the full name, lower case, no trailing dot.

        Raises:
            ApiError: also when it cannot be told whether that was everything.

        Source: GET /zones/{zone}/dns_records.
        """
        records = self.pages(f"{self.zone_path()}/dns_records", {"name": name}, _RECORDS_PER_PAGE, parse_record)
        return [record for record in records if record.name == name]

    def records_commented(self, comment: str) -> list[Record]:
        """Every record of the zone with this comment; Cloudflare compares without regard to case.

        Raises:
            ApiError: also when it cannot be told whether that was everything.

        Source: GET /zones/{zone}/dns_records?comment.exact=.
        """
        path = f"{self.zone_path()}/dns_records"
        return self.pages(path, {"comment.exact": comment}, _RECORDS_PER_PAGE, parse_record)

    def zone_name(self) -> str:
        """The zone's own name, which is its apex.

        Source: GET /zones/{zone}.
        """
        if self._zone_name is None:
            path = self.zone_path()
            self._zone_name = self.one("GET", path, lambda zone: _plain_name(zone["name"]))
        return self._zone_name

    def zone_path(self) -> str:
        """Return the path of the zone, which is looked up first if no id was given."""
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
                zone for zone in self.pages("/zones", {"name": name}, _ZONES_PER_PAGE, _parse_zone) if zone[1] == name
            ]
            if len(zones) > 1:
                raise ResponseError(
                    f"Cloudflare has {len(zones)} zones called {name}; set CLOUDFLARE_ZONE_ID to the one that is "
                    f"meant: {', '.join(sorted(zone_id for zone_id, _ in zones))}",
                    upstream=UPSTREAM,
                )
            if zones:
                return zones[0]
        raise ResponseError(
            f"Cloudflare shows this token no zone for DOMAIN_NAME {self._domain}; is the domain right, and does "
            "the token cover its zone? Set CLOUDFLARE_ZONE_ID to save the search",
            upstream=UPSTREAM,
        )

    def pages(
        self, path: str, params: Mapping[str, str], per_page: int, parse: Callable[[Any], Parsed]
    ) -> list[Parsed]:
        """Read every page of a list.

        Raises:
            ApiError: a page could not be read, or the pages do not add up to the reported total.
        """
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
                    raise no_sense(f"GET {path}")
            if page >= pages or not results:
                break
            page += 1
        if len(items) != count:
            raise ResponseError(
                f"Cloudflare says that GET {path} has {count} items and gave {len(items)}; nothing was changed",
                upstream=UPSTREAM,
            )
        return items

    def one(self, method: str, path: str, parse: Callable[[Any], Parsed], *, body: Any = None) -> Parsed:
        """Send one request and parse the `result` of the response."""
        answer = self._client.send(method, path, body=body)
        match answer.json:
            case {"success": True, "result": dict(result)}:
                return _parsed(f"{method} {path}", partial(parse, result))
        raise no_sense(f"{method} {path}")


def parse_record(payload: Any) -> Record:
    """Parse a record of any type."""
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
        raise no_sense(what) from None


def no_sense(what: str) -> ResponseError:
    """Return the error for a malformed response."""
    return ResponseError(
        f"the answer to {what} is not what Cloudflare says; is CLOUDFLARE_API_URL right?", upstream=UPSTREAM
    )
