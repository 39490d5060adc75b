"""Parse a JSON list while it arrives. This saves memory: the text of thousands of nodes has several megabytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

from lifecycle.clients.response import is_small_enough_to_parse

Parsed = TypeVar("Parsed")

_decode = json.JSONDecoder().raw_decode
# The white space of JSON. The pattern `\s` would match other characters, too.
_SPACE = r"[ \t\n\r]*"
_BEFORE_NEXT = re.compile(f"{_SPACE},{_SPACE}(?={{)")


class Items(Generic[Parsed]):
    """The items of a list such as `{"nodes": [{…}, {…}]}`.

    Args:
        member: the name of the list, which has to be the first member of the JSON object.
        parse: parses an item; raises ValueError, KeyError, TypeError or AttributeError if it is malformed.

    Attributes:
        parsed: the items that were parsed so far.
    """

    def __init__(self, member: str, parse: Callable[[Any], Parsed]) -> None:
        self.parsed: list[Parsed] = []
        self._parse = parse
        self._start = re.compile(_SPACE.join(("", "{", f'"{member}"', ":", r"\[", "")).encode())

    def take_from(self, body: bytearray) -> None:
        """Parse each item after which another item starts, and remove the parsed items from the body.

        The last item stays in the body. If an item is malformed, that item and everything after it stay, too.
        """
        start = self._start.match(body)
        # The body can end within a character of several bytes, so only the part up to the last "{" is decoded.
        end = body.rfind(b"{") + 1
        if start is None or start.end() >= end:
            return
        text = body[start.end() : end].decode(errors="replace")
        if not is_small_enough_to_parse(text):
            return
        position = 0
        with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            while True:
                item, after = _decode(text, position)
                following = _BEFORE_NEXT.match(text, after)
                if following is None:
                    break
                self.parsed.append(self._parse(item))
                position = following.end()
        body[start.end() : end] = text[position:].encode()
