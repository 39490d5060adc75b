"""Format the report of `status` as JSON values or as text, optionally with shortened names and addresses."""

from __future__ import annotations

import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lifecycle.domain.text import printable, printable_values, timestamp
from lifecycle.status.assess import Row

_COLUMNS = ("NAME", "RECORD", "NODE", "ADDRESS", "ONLINE", "STATE")
_NONE = "<none>"

# At most this many names are listed before each advice. The table lists all names.
_NAMES_SHOWN = 5

# Values of the context that are never shortened, because they contain no names.
_NOT_SHORTENED = frozenset({"version", "headscale_version", "clock", "api_key_expires_at"})
_IPV4 = re.compile(r"\b(\d{1,3}\.\d{1,3})\.\d{1,3}\.\d{1,3}\b")
_IPV6 = re.compile(r"\b([0-9a-f]{1,4})(?::[0-9a-f]{0,4}){2,7}", re.IGNORECASE)
# This pattern also matches IPv4 addresses and versions. _LABEL leaves their numbers as they are.
_DOTTED_NAME = r"\b\w[\w+-]*(?:[.@][\w+-]+)+"
# One part of a name between dots, whose first two characters are kept. A number is not shortened, because it may belong
# to an address, which has its own pattern.
_LABEL = re.compile(r"(?<![\w+-])(?!\d+(?![\w+-]))(\w[\w+-])[\w+-]+")


def to_json_values(
    context: Mapping[str, str | None],
    rows: Iterable[Row],
    problems: Iterable[str],
    *,
    shorten: Callable[[str], str] = str,
) -> dict[str, Any]:
    """Return the report as JSON values.

    Args:
        context: versions, user and other values that were read; None for a value that could not be read.
        problems: the problems that concern no single workload.
        shorten: is applied to names and addresses, and to text that may contain them.
    """
    return {
        "context": {
            key: shorten(value) if value and key not in _NOT_SHORTENED else value for key, value in context.items()
        },
        "workloads": [
            {
                "name": shorten(row.name),
                "state": str(row.state),
                "records": [{"type": record.type, "content": shorten(record.content)} for record in row.records],
                "node_id": row.node and row.node.id,
                "addresses": [shorten(str(address)) for address in row.node.addresses] if row.node else [],
                "online": row.node and row.node.online,
                "last_seen": timestamp(row.node.last_seen) if row.node and row.node.last_seen else None,
                "in_the_way": shorten(row.in_the_way),
                "advice": shorten(row.advice),
            }
            for row in rows
        ],
        "problems": [shorten(problem) for problem in problems],
    }


def make_shortener(texts: Iterable[str]) -> Callable[[str], str]:
    """Return a function that shortens names and addresses in strings, so that it can be published.

    Args:
        texts: names without a dot, and texts of which every word is shortened. Names with a dot need not be listed.
    """
    # Addresses are shortened before names, because the groups of an IPv6 address would be shortened like words.
    longest_first = sorted(map(_shorten_addresses, filter(None, texts)), key=len, reverse=True)
    known = "|".join(rf"(?<!\w){re.escape(text)}(?!\w)" for text in longest_first)
    names = re.compile(f"{known}|{_DOTTED_NAME}" if known else _DOTTED_NAME)
    return lambda value: names.sub(lambda match: _LABEL.sub(r"\1*", match[0]), _shorten_addresses(value))


def _shorten_addresses(text: str) -> str:
    return _IPV6.sub(r"\1:*", _IPV4.sub(r"\1.*.*", text))


def needs_action(report: Mapping[str, Any]) -> bool:
    """Return True if the operator has to do something, or if something could not be read."""
    return bool(report["problems"]) or any(row["advice"] for row in report["workloads"])


def to_text(report: Mapping[str, Any]) -> str:
    """Return the report as text: the context, a table of the workloads, and advice."""
    lines = printable_values(report["context"])
    rows = report["workloads"]
    if rows:
        cells = [_COLUMNS, *map(_cells, rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines.append("")
        lines += ["   ".join(map(str.ljust, line, widths)).rstrip() for line in cells]
    states = Counter(row["state"] for row in rows)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    lines += ["", f"total {len(rows)}: {counts}" if rows else "total 0"]
    # Many workloads can need the same advice, so each advice is printed once, after the names of its workloads.
    names = defaultdict(list)
    for row in rows:
        if row["advice"]:
            foreign = f" ({row['in_the_way']})" if row["in_the_way"] else ""
            names[row["state"], row["advice"]].append(printable(row["name"] + foreign))
    for (state, advice), affected in names.items():
        more = f" and {len(affected) - _NAMES_SHOWN} more" if len(affected) > _NAMES_SHOWN else ""
        lines += ["", f"{state}: {', '.join(affected[:_NAMES_SHOWN])}{more}", *_wrapped(advice)]
    for problem in report["problems"]:
        lines += ["", "problem:", *_wrapped(problem)]
    return "\n".join(lines) + "\n"


def _wrapped(paragraph: str) -> list[str]:
    return textwrap.wrap(printable(paragraph), 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    online = {None: _NONE, True: "yes", False: "no"}[row["online"]]
    if row["online"] is False and row["last_seen"]:
        online = f"no, since {row['last_seen']}"
    contents = ",".join(record["content"] for record in row["records"])
    addresses = ",".join(row["addresses"])
    cells = (row["name"], contents or _NONE, row["node_id"] or _NONE, addresses or _NONE, online, row["state"])
    return tuple(map(printable, cells))
