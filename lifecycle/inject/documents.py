"""Split and parse YAML and JSON documents, and write a changed document in the same format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from math import inf
from typing import Any

import yaml

from lifecycle.domain.errors import ManifestError
from lifecycle.domain.text import printable_json

# A line that begins with --- starts a document, even in the middle of a multi-line text.
_DOCUMENT = re.compile(r"^(?=---(?:\s|$))", re.MULTILINE)
# What is kept at the beginning of a changed document: --- and comments such as Helm's "# Source:".
_HEAD = re.compile(r"(?:(?:---[ \t\r]*|[ \t\r]*)(?:#.*)?\n)*")
# Without quotes, Kubernetes reads 1e3 or 0o14 as a number and y as a boolean, unlike PyYAML.
_AMBIGUOUS = re.compile(r"[-+]?\.?[0-9]|(?:y|n)$", re.IGNORECASE)

_TAG = "tag:yaml.org,2002:"

_MAX_DEPTH = 100
# The largest number of values in a document after its aliases are replaced by what they refer to.
_MAX_VALUES = 1_000_000

# The variants of PyYAML that use libyaml, if it is installed.
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BaseDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Unquoted(str):
    """A text that has no quotes in a YAML document, so that Kubernetes may read it as another type."""

    __slots__ = ()


class _Loader(_BaseLoader):  # type: ignore[misc] # one of two classes
    """Reads values. Dates, times of day and `=` are read as text, as Kubernetes reads them."""


class _Dumper(_BaseDumper):  # type: ignore[misc] # one of two classes
    """Writes values, without anchors and aliases."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _read_text(_loader: Any, node: yaml.ScalarNode) -> str:
    return str(node.value) if node.style else _Unquoted(node.value)


def _read_number(loader: Any, node: yaml.ScalarNode) -> Any:
    if ":" in node.value:
        # PyYAML reads 12:30 as a number of seconds.
        return str(node.value)
    return loader.construct_yaml_float(node) if node.tag == f"{_TAG}float" else loader.construct_yaml_int(node)


def _write_text(dumper: Any, text: str) -> yaml.ScalarNode:
    needs_quotes = _AMBIGUOUS.match(text) and not isinstance(text, _Unquoted)
    node: yaml.ScalarNode = dumper.represent_scalar(
        f"{_TAG}str", str(text), style="|" if "\n" in text else "'" if needs_quotes else None
    )
    return node


for _type in ("str", "timestamp", "value"):
    _Loader.add_constructor(f"{_TAG}{_type}", _read_text)
for _type in ("int", "float"):
    _Loader.add_constructor(f"{_TAG}{_type}", _read_number)
for _class in (str, _Unquoted):
    _Dumper.add_representer(_class, _write_text)


def join_texts(texts: Iterable[str]) -> str:
    """Join the texts of several files, with a separator between two of them."""
    joined = ""
    for text in texts:
        if joined:
            joined += "" if joined.endswith("\n") else "\n"
            joined += "" if text.startswith("---") else "---\n"
        joined += text
    return joined


def split_documents(text: str) -> list[str]:
    """Split YAML text into its documents, without losing a character."""
    return list(filter(None, _DOCUMENT.split(text)))


def parse_document(document: str) -> tuple[Any, bool]:
    """Parse a document.

    Returns:
        The value of the document, and True if the document is JSON.

    Raises:
        ManifestError: the document is neither valid YAML nor valid JSON, has a field twice, or has too many aliases.
        RecursionError: the document is nested too deeply.
    """
    _, body = _head_and_body(document)
    if body.lstrip().startswith("{"):
        try:
            # The YAML parser does not accept every escape of JSON.
            return json.loads(body, object_pairs_hook=_unique_fields), True
        except ValueError:
            pass
    try:
        _check_depth(document)
        loader = _Loader(document)
        node = loader.get_single_node()
        if node is None:
            return None, False
        if _size(node, {}) > _MAX_VALUES:
            raise ManifestError("has too many aliases, or an alias that refers to its own content")
        return loader.construct_document(node), False
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in its line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
        raise ManifestError(f"is not valid YAML{place}: {reason}") from None


def _check_depth(document: str) -> None:
    """Raise an error if the document is nested so deeply that libyaml would exhaust the stack."""
    depth = 0
    for event in yaml.parse(document, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise RecursionError


def _size(node: yaml.Node, sizes: dict[yaml.Node, float]) -> float:
    """Return the number of values in a node after its aliases are replaced; infinite if it contains itself.

    Raises:
        ManifestError: a mapping has a field twice.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if node not in sizes:
        sizes[node] = inf
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            _unique_fields([(key.value, None) for key, _ in parts if isinstance(key, yaml.ScalarNode)])
            parts = [part for pair in parts for part in pair]
        sizes[node] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[node]


def _unique_fields(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of an object. Raise ManifestError if a field occurs twice, because one value would be lost."""
    values = dict(fields)
    if len(values) < len(fields):
        repeated = next(name for name in values if [field for field, _ in fields].count(name) > 1)
        raise ManifestError(f"has the field {repeated} twice in an object")
    return values


def write_document(document: str, value: Any, *, is_json: bool) -> str:
    """Write the changed value of a document in the format of its old text."""
    head, _ = _head_and_body(document)
    text = f"{printable_json(value, indent=4)}\n" if is_json else to_yaml(value)
    return (head or ("---\n" if document.startswith("---") else "")) + text


def to_yaml(value: Any) -> str:
    """Return a value as YAML, over several lines."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31 - 1)
    return text


def _head_and_body(document: str) -> tuple[str, str]:
    match = _HEAD.match(document)
    head = match[0] if match else ""
    return head, document.removeprefix(head)
