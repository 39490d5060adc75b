"""Test that the items of a JSON list are parsed while the response arrives in pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.clients.items import Items


def parse_id(item: Any) -> int:
    """Return the id of an item."""
    item_id: int = item["id"]
    return item_id


def parse_in_pieces(text: bytes, *cuts: int) -> tuple[list[int], Any]:
    """Return the ids of the parsed items, and the JSON value of the remaining body.

    Args:
        cuts: the text is cut into pieces at these positions, each taken modulo the number of possible positions.
    """
    items, body = Items("nodes", parse_id), bytearray()
    ends = [*sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in zip([0, *ends], ends, strict=False):
        body += text[start:end]
        items.take_from(body)
    return items.parsed, json.loads(body)


@given(
    names=st.lists(st.text()),
    indent=st.sampled_from([None, 0, 2]),
    ensure_ascii=st.booleans(),
    cuts=st.lists(st.integers(min_value=0)),
)
def test_all_items_but_the_last_are_parsed(
    names: list[str], indent: int | None, ensure_ascii: bool, cuts: list[int]
) -> None:
    """The last item stays in the body, which is parsed as usual after all pieces have arrived."""
    nodes = [{"id": number, "name": name} for number, name in enumerate(names)]
    text = json.dumps({"nodes": nodes, "total": len(nodes)}, indent=indent, ensure_ascii=ensure_ascii)
    parsed, rest = parse_in_pieces(text.encode(), *cuts)
    assert parsed == list(range(len(names)))[:-1]
    assert rest == {"nodes": nodes[-1:], "total": len(nodes)}


def test_parsed_items_are_removed_from_the_body() -> None:
    text = json.dumps({"nodes": [{"id": number, "name": "x" * 1000} for number in range(50)]}).encode()
    items, body = Items("nodes", parse_id), bytearray()
    for start in range(0, len(text), 4000):
        body += text[start : start + 4000]
        items.take_from(body)
        # At most one piece, and an item that arrived in part.
        assert len(body) < 6000


@pytest.mark.parametrize(
    "text",
    [
        b'{"nodes":[{"id":1}{"id":2}]}',
        b'{"nodes":[,{"id":1}]}',
        b'{"nodes":[{"id":1},]}',
        b'{"nodes":[{"id":1},,{"id":2}]}',
        b'{"nodes":[{"id":1},{"id":2}',
        b'{"nodes":[{"id":1},{"id":',
        b'{"nodes":[{"id":1},{"id":2}]} and more',
        # These blanks are not white space in JSON.
        b'{"nodes":[{"id":1}\xc2\xa0,{"id":2}]}',
        b'{"nodes":[{"id":1},\x0b{"id":2}]}',
        b'{"nodes":[\x0c{"id":1},{"id":2}]}',
    ],
)
@pytest.mark.parametrize("piece_size", [1, 5, 1000])
def test_rest_of_malformed_json_is_malformed(text: bytes, piece_size: int) -> None:
    """So the program refuses the whole response, although some of its items were already parsed."""
    with pytest.raises(json.JSONDecodeError):
        parse_in_pieces(text, *range(piece_size, len(text), piece_size))


@pytest.mark.parametrize("piece_size", [1, 5, 1000])
def test_malformed_item_and_later_items_stay_in_the_body(piece_size: int) -> None:
    text = b'{"nodes":[{"id":1},{"id":2},{"name":"no id"},{"id":4},{"id":5}]}'
    parsed, rest = parse_in_pieces(text, *range(piece_size, len(text), piece_size))
    assert parsed == [1, 2]
    assert rest == {"nodes": [{"name": "no id"}, {"id": 4}, {"id": 5}]}


@pytest.mark.parametrize(
    "text",
    [
        b'{"users":[{"id":1},{"id":2}]}',
        b'{"total":1,"nodes":[{"id":1},{"id":2}]}',
        b'[{"id":1},{"id":2}]',
        b'{"nodes":{"id":1}}',
        b'{"nodes":[1,2]}',
    ],
)
def test_body_that_starts_with_something_else_is_not_changed(text: bytes) -> None:
    """Items are parsed only from a list of objects that is the first member of the body."""
    assert parse_in_pieces(text, 3, 20) == ([], json.loads(text))
