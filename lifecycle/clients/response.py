"""Parse complete HTTP responses, and prepare their text for messages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import MAXYEAR, UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from lifecycle.domain.errors import ApiError

# A longer Retry-After is reduced to this. Cloudflare blocks a client for five minutes. Otherwise, a proxy's error page
# could keep the program from working for days.
_MAX_RETRY_AFTER = timedelta(minutes=15)

# The largest number of values in a JSON text that is parsed. Parsed values take many times the memory of their text. A
# list of 20,000 nodes has about a million.
_MAX_VALUES = 2_000_000

# The longest text of a response in a message.
_MAX_EXCERPT = 300

# Only the start of a longer text is processed: processing megabytes takes long, and most of it would be cut anyway.
_MAX_PROCESSED = 10_000

# A word of 32 or more characters is treated as a key or token.
_SECRET = re.compile(r"[\w+=-]{32,}")

# The errors of functions that parse a malformed payload.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)

_TITLE = re.compile(r"<title>([^<]*)", re.IGNORECASE)

ObjectHook = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class Response:
    """A complete HTTP response.

    Attributes:
        text: the body, with undecodable bytes replaced; "" if it was parsed as JSON.
        json: the parsed body; None if its content type is not JSON, or if it is malformed.
        secret: the token in the request, which must not appear in a message; "" if there was none.
    """

    status: int
    headers: Mapping[str, str]
    text: str
    json: Any
    secret: str = ""

    @property
    def retry_after(self) -> timedelta | None:
        """The header Retry-After, in seconds or as a date; None if there is none."""
        text = self.headers.get("retry-after", "").strip()
        if not text:
            return None
        try:
            return timedelta(seconds=min(max(float(text), 0.0), _MAX_RETRY_AFTER.total_seconds()))
        except ValueError:
            pass
        date = _parse_date(text)
        # The clock of this machine can be wrong by hours, so the upstream's clock is used if it is known.
        now = self.date or datetime.now(UTC)
        return None if date is None else min(max(date - now, timedelta()), _MAX_RETRY_AFTER)

    @property
    def date(self) -> datetime | None:
        """The header Date: the upstream's clock in whole seconds; None if there is none."""
        date = _parse_date(self.headers.get("date", ""))
        # No duration can be added to the last possible year, 9999, which some servers send for "never".
        return date if date is not None and date.year < MAXYEAR else None

    @property
    def reason(self) -> str:
        """The explanation in an error response, to be appended to a message; "" if there is none."""
        text = self.text
        if text.lstrip().startswith("<"):
            title = _TITLE.search(text)
            text = title[1] if title else ""
        message = excerpt("; ".join(_messages(self.json)) or text, secret=self.secret)
        return f' Response: "{message}"' if message else ""


def parse_response(
    status: int, headers: Mapping[str, str], body: bytearray, *, secret: str, object_hook: ObjectHook | None = None
) -> Response:
    """Parse a response, and clear its body to save memory. Look-ups in `headers` must ignore case."""
    text = body.decode(errors="replace")
    body.clear()
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    # Each value except the first follows one of these characters.
    is_small = sum(map(text.count, ",[{")) <= _MAX_VALUES
    if is_small and (content_type == "application/json" or content_type.endswith("+json")):
        with suppress(*_MALFORMED):
            return Response(status, headers, "", json.loads(text, object_hook=object_hook), secret)
    return Response(status, headers, text, None, secret)


@contextmanager
def well_formed(malformed: ApiError) -> Iterator[None]:
    """Raise the given error if the block cannot parse a payload.

    The error is not chained, because the cause can contain a secret of the payload.
    """
    try:
        yield
    except _MALFORMED:
        raise malformed from None


def excerpt(text: str, *, secret: str = "") -> str:
    """Return the start of the text as one line of printable characters, without secrets.

    Args:
        secret: a string to remove. Everything that looks like a key or token is removed, too.
    """
    text = text[:_MAX_PROCESSED]
    if secret:
        text = text.replace(secret, "…")
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = _SECRET.sub("…", " ".join(printable.split()))
    return line if len(line) <= _MAX_EXCERPT else f"{line[:_MAX_EXCERPT]}…"


def _parse_date(text: str) -> datetime | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def listed_errors(body: Any) -> list[dict[str, Any]]:
    """Return the errors that the body of a refusal lists, and their causes, which Cloudflare calls `error_chain`."""
    errors = _objects(body, "errors")
    return errors + [cause for error in errors for cause in _objects(error, "error_chain")]


def _messages(body: Any) -> list[str]:
    """Return the messages in a refusal by Cloudflare, Headscale (gRPC gateway or problem document) or Kubernetes."""
    return [text for error in listed_errors(body) for text in _texts(error)] or _texts(body)


def _objects(body: Any, member: str) -> list[dict[str, Any]]:
    items = body.get(member) if isinstance(body, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _texts(body: Any) -> list[str]:
    values = [body.get(name) for name in ("detail", "message", "error")] if isinstance(body, dict) else []
    return [value for value in values if isinstance(value, str)]
