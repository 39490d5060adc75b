"""A whole HTTP response, parsed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from lifecycle.clients.text import excerpt
from lifecycle.domain.errors import ApiError

# Longer than any upstream asks for; a larger number may not even fit a timedelta.
_MAX_RETRY_AFTER = timedelta(days=1)

# The most values that are parsed from JSON. A list of 20,000 nodes has about a million.
_MAX_VALUES = 2_000_000

_TITLE = re.compile(r"<title>(.*?)</title>", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Response:
    """A whole HTTP response.

    Attributes:
        text: the body, undecodable bytes replaced; "" if it was parsed as JSON.
        json: the parsed body if its content type is JSON; None if it is not, or is malformed.
        secret: the credentials of the request, which must not be quoted.
    """

    status: int
    headers: Mapping[str, str]
    text: str
    json: Any
    secret: str | None = None

    @property
    def retry_after(self) -> timedelta | None:
        """How long to wait before the next request, sent as seconds or as a date; None if not sent."""
        text = self.headers.get("retry-after", "").strip()
        if not text:
            return None
        try:
            return timedelta(seconds=min(max(float(text), 0.0), _MAX_RETRY_AFTER.total_seconds()))
        except ValueError:
            pass
        at = _parse_date(text)
        return None if at is None else min(max(at - datetime.now(UTC), timedelta()), _MAX_RETRY_AFTER)

    @property
    def date(self) -> datetime | None:
        """The upstream's clock, in whole seconds, when it sent the response."""
        return _parse_date(self.headers.get("date", ""))

    @property
    def reason(self) -> str:
        """The upstream's own words about a refusal, as the end of a message; "" if there are none."""
        words = excerpt("; ".join(_messages(self.json)) or self._plain_text, secret=self.secret)
        return f' Response: "{words}"' if words else ""

    @property
    def _plain_text(self) -> str:
        if not self.text.lstrip().startswith("<"):
            return self.text
        title = _TITLE.search(self.text)
        return title[1] if title else ""


def parse_response(
    status: int,
    headers: Mapping[str, str],
    body: bytearray,
    *,
    secret: str | None = None,
) -> Response:
    """Parse a response.

    Args:
        headers: of the response; names are case-insensitive.
        body: is cleared, so that there are not two copies of it.
        secret: see `Response`.
    """
    text = body.decode(errors="replace")
    body.clear()
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if (kind == "application/json" or kind.endswith("+json")) and is_moderate(text):
        with suppress(ValueError, RecursionError):
            return Response(status, headers, "", json.loads(text), secret)
    return Response(status, headers, text, None, secret)


@contextmanager
def well_formed(malformed: ApiError) -> Iterator[None]:
    """Raise the given error if the block, which parses a payload, fails.

    The error is not chained, so that the payload, which can contain a secret, is not in the traceback.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise malformed from None


def is_moderate(text: str) -> bool:
    """Return True unless parsing could take a multiple of the text's memory: `{},` becomes more than 64 bytes."""
    return sum(map(text.count, ",[{")) <= _MAX_VALUES


def _parse_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _messages(body: Any) -> list[str]:
    """Return the messages in a refusal: of Cloudflare, Headscale (gRPC gateway, problem document) and Kubernetes."""
    match body:
        case {"errors": [*errors]}:
            return [message for error in errors for message in _messages(error)] or _texts(body)
        case {"error_chain": [*chain]}:
            return _texts(body) + [message for error in chain for message in _messages(error)]
        case dict():
            return _texts(body)
    return []


def _texts(body: dict[str, Any]) -> list[str]:
    return [body[name] for name in ("detail", "message", "error") if isinstance(body.get(name), str)]
