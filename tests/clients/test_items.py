"""A JSON list is parsed while it arrives in pieces."""

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
        cuts: the positions at which the text is cut into pieces, modulo its length.
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
    is_ascii=st.booleans(),
    cuts=st.lists(st.integers(min_value=0)),
)
def test_all_items_but_the_last_are_parsed(
    names: list[str], indent: int | None, is_ascii: bool, cuts: list[int]
) -> None:
    nodes = [{"id": number, "name": name} for number, name in enumerate(names)]
    text = json.dumps({"nodes": nodes, "total": len(nodes)}, indent=indent, ensure_ascii=is_ascii)
    parsed, rest = parse_in_pieces(text.encode(errors="surrogatepass"), *cuts)
    assert parsed == list(range(len(names)))[:-1]
    assert rest == {"nodes": nodes[-1:], "total": len(nodes)}


def test_parsed_items_are_not_kept_in_the_body() -> None:
    text = json.dumps({"nodes": [{"id": number, "name": "x" * 1000} for number in range(50)]}).encode()
    items, body = Items("nodes", parse_id), bytearray()
    for start in range(0, len(text), 4000):
        body += text[start : start + 4000]
        items.take_from(body)
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
        b'{"nodes":[{"id":1}\xc2\xa0,{"id":2}]}',
        b'{"nodes":[{"id":1},\x0b{"id":2}]}',
        b'{"nodes":[\x0c{"id":1},{"id":2}]}',
    ],
)
@pytest.mark.parametrize("size", [1, 5, 1000])
def test_rest_of_malformed_json_is_malformed(text: bytes, size: int) -> None:
    with pytest.raises(ValueError, match="column"):
        parse_in_pieces(text, *range(size, len(text), size))


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_malformed_item_and_later_ones_stay_in_the_body(size: int) -> None:
    text = b'{"nodes":[{"id":1},{"id":2},{"name":"no id"},{"id":4},{"id":5}]}'
    parsed, rest = parse_in_pieces(text, *range(size, len(text), size))
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
def test_body_without_the_list_is_not_changed(text: bytes) -> None:
    assert parse_in_pieces(text, 3, 20) == ([], json.loads(text))
