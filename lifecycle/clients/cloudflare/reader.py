"""Read the records of one Cloudflare zone.

Source: Cloudflare API v4, "DNS Records for a Zone" and "Zone".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, TypeVar

from lifecycle.clients.cloudflare.errors import UPSTREAM
from lifecycle.clients.json_client import JsonClient
from lifecycle.clients.response import Response, well_formed
from lifecycle.domain.errors import AuthError, NotFoundError, ResponseError
from lifecycle.domain.model import Record
from lifecycle.domain.ownership import is_in_domain

Parsed = TypeVar("Parsed")

_ID = re.compile(r"[0-9a-f]{1,32}")

# 100 is Cloudflare's default, which is enough for the few records of a name. Larger pages, of up to 5,000 records, are
# for lists of a whole zone.
_RECORDS_PER_PAGE = 100
_RECORDS_PER_LARGE_PAGE = 1000
_ZONES_PER_PAGE = 50


class CloudflareReader:
    """The Cloudflare zone that contains a domain.

    Each method raises an ApiError if a request fails, or if a list is malformed or may be incomplete.

    Args:
        client: its base address ends in `/client/v4`.
        domain: a domain such as apps.example.com. Its zone has the same name or, if Cloudflare has no such zone, the
            name of its nearest parent domain that is a zone.
        zone_id: the id of the zone; None = find the zone by the domain.
    """

    def __init__(self, client: JsonClient, *, domain: str, zone_id: str | None = None) -> None:
        self._client = client
        self._domain = domain
        self._zone_id = zone_id
        self._searches_zone = zone_id is None
        self._zone_name = ""

    def records(self, name: str, *, comment: str | None = None) -> list[Record]:
        """Return the records of every type at exactly this name.

        Args:
            name: the full name in lower case, without a trailing dot.
            comment: also return the records at other names that have exactly this comment.

        Source: GET /zones/{zone}/dns_records; with match=any, a record has to match only one of the filters.
        """
        filters = {"name": name} if comment is None else {"name": name, "comment.exact": comment, "match": "any"}
        records = self._pages(f"{self.zone_path()}/dns_records", filters, _RECORDS_PER_PAGE, parse_record)
        return [record for record in records if record.name == name or record.comment == comment]

    def all_records(self, *, comment_start: str = "") -> list[Record]:
        """Return all records of the zone, or only those whose comment starts with a string, without regard to case.

        Source: GET /zones/{zone}/dns_records?comment.startswith=.
        """
        filters = {"comment.startswith": comment_start} if comment_start else {}
        return self._pages(f"{self.zone_path()}/dns_records", filters, _RECORDS_PER_LARGE_PAGE, parse_record)

    def check_zone(self, name: str) -> str | None:
        """Check that a name belongs to the zone. For any other name, Cloudflare would create a record at `NAME.ZONE`.

        Returns:
            The name of the zone. None if the token may not read the zone, so that nothing was checked. Some tokens can
            edit records, but cannot read the zone.

        Raises:
            ResponseError: the name belongs to another zone.
        """
        try:
            zone = self.zone_name()
        except AuthError:
            return None
        if not is_in_domain(name, zone):
            raise ResponseError(
                f"CLOUDFLARE_ZONE_ID is the zone {zone}, to which {name} does not belong. Set it to the id of "
                "the zone of DOMAIN_NAME, or leave it out.",
                upstream=UPSTREAM,
            )
        return zone

    def zone_name(self) -> str:
        """Return the name of the zone, also called its apex. Source: GET /zones/{zone}, which is sent only once."""
        path = self.zone_path()
        if not self._zone_name:
            self._zone_name = self._one("GET", path, lambda zone: _plain_name(zone["name"]))
        return self._zone_name

    def zone_path(self) -> str:
        """Return the path of the zone in the API. If its id is not known yet, the zone is searched first."""
        if self._zone_id is None:
            self._zone_id, self._zone_name = self._find_zone()
        return f"/zones/{self._zone_id}"

    def _find_zone(self) -> tuple[str, str]:
        """Return the id and name of the zone: try the whole domain first, then each of its parent domains.

        Raises:
            ResponseError: there is no such zone, or there are several.

        Source: GET /zones?name=.
        """

        def parse_zone(zone: Any) -> tuple[str, str]:
            return _identifier(zone["id"]), _plain_name(zone["name"])

        labels = self._domain.split(".")
        for start in range(len(labels) - 1):
            name = ".".join(labels[start:])
            if self._zone_name not in ("", name):
                # The zone was found before, and is only searched again. It has another id, but the same name.
                continue
            listed = self._pages("/zones", {"name": name}, _ZONES_PER_PAGE, parse_zone)
            zones = [zone for zone in listed if zone[1] == name]
            if len(zones) > 1:
                ids = ", ".join(sorted(zone_id for zone_id, _ in zones))
                raise ResponseError(
                    f"Cloudflare has {len(zones)} zones named {name}. Set CLOUDFLARE_ZONE_ID to one of: {ids}.",
                    upstream=UPSTREAM,
                )
            if zones:
                return zones[0]
        raise ResponseError(
            f"Cloudflare has no zone for DOMAIN_NAME {self._domain} that this token can access. Check the domain and "
            "the token's zones, or set CLOUDFLARE_ZONE_ID.",
            upstream=UPSTREAM,
        )

    def _pages(
        self, path: str, params: Mapping[str, str], per_page: int, parse: Callable[[Any], Parsed]
    ) -> list[Parsed]:
        """Read every page of a list, and check that the pages add up to the reported total."""
        items: dict[str, Parsed] = {}
        for page in count(1):
            known = len(items)
            response = self._send("GET", path, params={**params, "page": str(page), "per_page": str(per_page)})
            with well_formed(malformed_response(f"GET {path}")):
                match response.json:
                    case {
                        "success": True,
                        "result": list(results),
                        "result_info": {"total_pages": int(pages), "total_count": int(total)},
                    }:
                        items |= {result["id"]: parse(result) for result in results}
                    case _:
                        raise ValueError("not a page of a list")
            # A page without new items is empty or repeated.
            if page >= pages or len(items) == known:
                break
        if len(items) != total:
            raise ResponseError(
                f"Cloudflare reports {total} items for GET {path} and returned {len(items)}. Nothing was changed.",
                upstream=UPSTREAM,
            )
        return list(items.values())

    def _one(self, method: str, path: str, parse: Callable[[Any], Parsed], *, body: Any = None) -> Parsed:
        """Send a request, and return the parsed `result` of the response."""
        response = self._send(method, path, body=body)
        with well_formed(malformed_response(f"{method} {path}")):
            match response.json:
                case {"success": True, "result": dict(result)}:
                    return parse(result)
            raise ValueError("no result")

    def _send(self, method: str, path: str, **options: Any) -> Response:
        try:
            return self._client.send(method, path, **options)
        except (AuthError, NotFoundError, ResponseError):
            # If the zone was removed from Cloudflare and added again, it has another id.
            if self._searches_zone:
                self._zone_id = None
            raise


def parse_record(payload: Any) -> Record:
    """Parse a record of any type."""
    ttl = payload.get("ttl")
    meta = payload.get("meta")
    return Record(
        id=_identifier(payload["id"]),
        name=_plain_name(payload["name"]),
        type=_text(payload["type"]),
        content=_text(payload.get("content") or ""),
        ttl_s=ttl if isinstance(ttl, int) else 1,  # 1 = automatic
        proxied=payload.get("proxied") is True,
        comment=_text(payload.get("comment") or ""),
        read_only=isinstance(meta, dict) and meta.get("read_only") is True,
    )


def malformed_response(what: str) -> ResponseError:
    """Return the error for a response that lacks required values, for example because it is from another server."""
    return ResponseError(f"Malformed response to {what}. Check CLOUDFLARE_API_URL.", upstream=UPSTREAM)


def _plain_name(value: Any) -> str:
    return _text(value).lower().removesuffix(".")


def _identifier(value: Any) -> str:
    """Return an id after checking its form, because the id becomes part of a path."""
    text = _text(value)
    if not _ID.fullmatch(text):
        raise ValueError("not an id of up to 32 hex digits")
    return text


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a string")
    return value
