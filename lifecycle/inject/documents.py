"""Split and parse YAML and JSON documents, and write a changed document in the same format."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
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
        ManifestError: the document is neither valid YAML nor valid JSON.
    """
    _, body = _head_and_body(document)
    if body.lstrip().startswith("{"):
        try:
            # The YAML parser does not accept every escape of JSON.
            return json.loads(body), True
        except ValueError:
            pass
    try:
        return yaml.load(document, Loader=_Loader), False  # noqa: S506 - a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in its line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
        raise ManifestError(f"is not valid YAML{place}: {reason}") from None


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
