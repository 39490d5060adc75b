"""Split and parse YAML and JSON documents, and write a changed document in the same format."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import yaml

from lifecycle.domain.errors import ManifestError
from lifecycle.domain.text import printable
from lifecycle.inject.nodes import EQUALS_SIGN, MAX_DEPTH, NUMBERS, STRING, Fields, ItemsAsText, Number, node_from_value

# A line that begins with --- starts a document, even in the middle of a multi-line text.
_DOCUMENT = re.compile(r"^(?=---(?:\s|$))", re.MULTILINE)
# The indentation of a line, including the dashes of list items.
_INDENTATION = re.compile(r"^[-? ]+", re.MULTILINE)
# YAML directives (lines that begin with %) and comments before a document. They belong to that document.
_DIRECTIVES = re.compile(r"(?:[ \t\r]*(?:#.*)?\n)*%.*\n(?:[ \t\r]*(?:[%#].*)?\n)*")
# What is kept at the beginning of a changed document: ---, directives, and comments such as Helm's "# Source:".
_HEAD = re.compile(r"(?:(?:---[ \t\r]*|[ \t\r]*)(?:#.*)?\n|%.*\n)*")
# Texts that every YAML parser reads as text even if they have no quotes.
_PLAIN = re.compile(r"(?!(?:true|false|yes|no|on|off|null|y|n)$)[A-Za-z/][-\w./]*", re.ASCII | re.IGNORECASE)

_RESOLVER: Any = yaml.resolver.Resolver()

# The variants of PyYAML that use libyaml, if it is installed.
_BaseLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BaseDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@cache
def _resolved(kind: Any, value: str, implicit: tuple[bool, bool]) -> str:
    tag: str = _RESOLVER.resolve(kind, value, implicit)
    # PyYAML reads 12:30 as a number of seconds, and gives = a type of its own. Kubernetes reads both as text.
    return STRING if tag == EQUALS_SIGN or (tag in NUMBERS and ":" in value) else tag


class _Resolver:
    """Caches the type that PyYAML finds for each text, because parsing spends most of its time on this."""

    def resolve(self, kind: Any, value: str | None, implicit: tuple[bool, bool]) -> str:
        return _resolved(kind, value if kind is yaml.ScalarNode else "", implicit)


class _Loader(_Resolver, _BaseLoader):  # type: ignore[misc] # one of two classes
    """Reads nodes."""


class _Dumper(_Resolver, _BaseDumper):  # type: ignore[misc] # one of two classes
    """Writes nodes."""


def split_documents(text: str) -> list[str]:
    """Split YAML text into its documents, without losing a character."""
    documents: list[str] = []
    for part in _DOCUMENT.split(text):
        if documents and _DIRECTIVES.fullmatch(documents[-1]):
            documents[-1] += part
        elif part:
            documents.append(part)
    return documents


def join_documents(documents: Sequence[str]) -> str:
    """Join documents, and add the line break that is missing between two of them."""
    lines = [document if document.endswith("\n") else f"{document}\n" for document in documents[:-1]]
    return "".join([*lines, *documents[-1:]])


def parse_document(document: str) -> tuple[yaml.Node, bool]:
    """Parse a document.

    Returns:
        The root node, and True if the document is JSON.

    Raises:
        ManifestError: the document is neither valid YAML nor valid JSON, or is nested too deeply.
    """
    if document.lstrip().startswith("{"):
        try:
            # The YAML parser does not accept every escape of JSON.
            value = json.loads(document, object_pairs_hook=Fields, parse_int=Number, parse_float=Number)
        except RecursionError:
            raise ManifestError(f"is nested in more than {MAX_DEPTH} levels") from None
        except ValueError:
            pass
        else:
            return node_from_value(value), True
    try:
        _check_depth(document)
        # An empty document has no node.
        return yaml.compose(document, Loader=_Loader) or node_from_value(None), False
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in its line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
        raise ManifestError(f"is not valid YAML{place}: {reason}") from None


def _check_depth(document: str) -> None:
    """Raise an error if the document is nested so deeply that it would exhaust the stack of the parser."""
    # The sum below is computed quickly, and is never lower than the depth: each level needs a bracket or further
    # indentation. Columns count twice, because a list can have the indentation of the field that contains it.
    columns = max(map(len, _INDENTATION.findall(document)), default=0)
    if document.count("[") + document.count("{") + 2 * columns < MAX_DEPTH:
        return
    depth = 0
    for event in yaml.parse(document, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ManifestError(f"is nested in more than {MAX_DEPTH} levels")


def write_document(document: str, root: yaml.Node, added: Sequence[ItemsAsText | None], *, is_json: bool) -> str:
    """Write the changed root node of a document in the format of its old text. The added items replace placeholders."""
    if is_json:
        return f"{_json(root, '')}\n"
    text: str = yaml.serialize(root, Dumper=_Dumper, width=2**31 - 1, allow_unicode=True)
    for items in filter(None, added):
        before, _, after = text.partition(f"- {items.placeholder}\n")
        indent = before.rpartition("\n")[2]
        text = f"{before.removesuffix(indent)}{block_yaml(items.values, indent)}{after}"
    head = _HEAD.match(document)
    prefix = (head[0] if head else "") or ("---\n" if document.startswith("---") else "")
    return f"{prefix}{text}"


def block_yaml(value: Any, indent: str = "") -> str:
    """Return an object or a list as YAML, over several lines."""
    inner = f"{indent}  "
    text = ""
    if isinstance(value, dict):
        for key, member in value.items():
            if isinstance(member, dict):
                text += f"{indent}{key}:\n{block_yaml(member, inner)}"
            elif isinstance(member, list):
                text += f"{indent}{key}:\n{block_yaml(member, indent)}"
            else:
                text += f"{indent}{key}: {_scalar(member)}\n"
    else:
        for item in value:
            member = block_yaml(item, inner).lstrip() if isinstance(item, dict) else f"{_scalar(item)}\n"
            text += f"{indent}- {member}"
    return text


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    # YAML has no surrogate pairs, with which JSON escapes characters above U+FFFF.
    return printable(json.dumps(value, ensure_ascii=False))


def _json(node: yaml.Node, indent: str) -> str:
    inner = f"{indent}    "
    if isinstance(node, yaml.MappingNode):
        parts = [f"{inner}{_quoted(key.value)}: {_json(value, inner)}" for key, value in node.value]
        return "{\n" + ",\n".join(parts) + f"\n{indent}}}" if parts else "{}"
    if isinstance(node, yaml.SequenceNode):
        parts = [f"{inner}{_json(value, inner)}" for value in node.value]
        return "[\n" + ",\n".join(parts) + f"\n{indent}]" if parts else "[]"
    return _quoted(node.value) if node.tag == STRING else str(node.value)


def _quoted(text: str) -> str:
    # Escape text with unprintable characters, because YAML allows fewer of them in quotes than JSON.
    return json.dumps(text, ensure_ascii=not text.isprintable())
