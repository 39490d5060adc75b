"""Text to documents and back: YAML, or JSON, which is written as JSON again."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import yaml

from lifecycle.domain.errors import ManifestError
from lifecycle.inject.nodes import STRING, Fields, Number, node_of

_MAX_DEPTH = 100
# A line that begins with --- always starts a document, also within a block of text.
_DOCUMENT = re.compile(r"^(?=---(?:\s|$))", re.MULTILINE)
_DIRECTIVES = re.compile(r"(?:\s*(?:[%#].*)?\n)*\s*%.*\n(?:\s*(?:[%#].*)?\n)*")
# What is kept before a document that is written again: its marker and comments, such as Helm's "# Source:".
_HEAD = re.compile(r"(?:(?:---[ \t]*|[ \t]*)(?:#.*)?\n|%.*\n)*")
_RESOLVER: Any = yaml.resolver.Resolver()
# The variants of PyYAML that use libyaml, if it is installed.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_Base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


@cache
def _resolved(kind: Any, value: str, implicit: tuple[bool, bool]) -> str:
    return cast("str", _RESOLVER.resolve(kind, value, implicit))


class _Dumper(_Base):  # type: ignore[misc] # one of two classes
    """Writes nodes. It resolves each text once, which is most of the work with many workloads."""

    def resolve(self, kind: Any, value: str | None, implicit: tuple[bool, bool]) -> str:
        return _resolved(kind, value if kind is yaml.ScalarNode else "", implicit)


def split_documents(text: str) -> list[str]:
    """Split a text into its documents, which together are the text."""
    documents: list[str] = []
    for part in _DOCUMENT.split(text):
        if documents and _DIRECTIVES.fullmatch(documents[-1]):
            documents[-1] += part
        elif part:
            documents.append(part)
    return documents


def join_documents(documents: Sequence[str]) -> str:
    """Put documents together, each after the first on a line of its own."""
    text = ""
    for document in documents:
        if text and not text.endswith("\n"):
            text += "\n"
        text += document
    return text


def parse_document(document: str) -> tuple[yaml.Node | None, bool]:
    """Parse a document: its root, which is None if it is empty, and whether it is JSON."""
    if document.lstrip().startswith("{"):
        try:
            # YAML does not read every escape of JSON.
            pairs = json.loads(document, object_pairs_hook=Fields, parse_int=Number, parse_float=Number)
            return node_of(pairs, style='"'), True
        except RecursionError:
            raise ManifestError("is nested too deeply") from None
        except ValueError:
            pass
    try:
        _check_depth(document)
        return yaml.compose(document, Loader=_Loader), False
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in its line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be parsed"
        raise ManifestError(f"is not valid YAML{place}: {reason}") from None


def _check_depth(document: str) -> None:
    """Raise an error for nesting that would exhaust the stack of the parser."""
    depth = 0
    for event in yaml.parse(document, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ManifestError(f"is nested in more than {_MAX_DEPTH} levels")


def write_document(document: str, root: yaml.Node, *, is_json: bool) -> str:
    """Write a document again, after its nodes were changed."""
    if is_json:
        return f"{_json(root, '')}\n"
    head = _HEAD.match(document)
    prefix = head[0] if head else ""
    if document.startswith("---") and not prefix:
        prefix = "---\n"
    return f"{prefix}{to_yaml(root)}"


def to_yaml(node: yaml.Node) -> str:
    """Return a document as YAML, with each text on one line unless it was a block of lines."""
    text: str = yaml.serialize(node, Dumper=_Dumper, width=2**31 - 1, allow_unicode=True)
    return text


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
    # YAML allows fewer characters than JSON.
    return json.dumps(text, ensure_ascii=not text.isprintable())
