"""Create, read and change the nodes of PyYAML (the parsed values of a document, not the nodes of the VPN).

Nodes keep the order of fields and the spelling of values when a document is written again.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any, cast

import yaml

from lifecycle.domain.errors import ManifestError

# This limit is more than any real manifest needs. Without a limit, aliases within aliases could be resolved to any
# number of nodes.
_MAX_NODES = 200_000
MAX_DEPTH = 200
"""How deep a document can be nested: more than any manifest, and less than exhausts the stack of the parser."""

# YAML calls the type of a value its tag. A manifest has only values of these types.
_TAG = "tag:yaml.org,2002:"
STRING, _MERGE, _MAPPING, _SEQUENCE = f"{_TAG}str", f"{_TAG}merge", f"{_TAG}map", f"{_TAG}seq"
_INTEGER, _FLOAT, _BOOLEAN, _NULL = f"{_TAG}int", f"{_TAG}float", f"{_TAG}bool", f"{_TAG}null"
NUMBERS = (_INTEGER, _FLOAT)
_KNOWN_TAGS = {STRING, _MERGE, _MAPPING, _SEQUENCE, *NUMBERS, _BOOLEAN, _NULL, f"{_TAG}timestamp"}
EQUALS_SIGN = f"{_TAG}value"
"""The type that PyYAML gives to the text `=`."""
_CONSTRUCTOR = yaml.constructor.SafeConstructor()
_AMBIGUOUS = re.compile(r"[-+]?\.?[0-9]|(?:y|n)$", re.IGNORECASE)


class Fields(list[tuple[str, Any]]):
    """The fields of a JSON object, in order."""


class Number(str):
    """A number of a JSON document, with its spelling."""

    __slots__ = ()


def node_from_value(value: Any, depth: int = 0) -> yaml.Node:
    """Return the node of a JSON value, on one line. Its objects and numbers can also be `Fields` and `Number`.

    Args:
        depth: how many values contain this value.
    """
    if depth > MAX_DEPTH:
        raise ManifestError(f"is nested in more than {MAX_DEPTH} levels")
    if isinstance(value, Fields | dict):
        fields = value if isinstance(value, Fields) else value.items()
        pairs = [(yaml.ScalarNode(STRING, key), node_from_value(member, depth + 1)) for key, member in fields]
        return yaml.MappingNode(_MAPPING, pairs, flow_style=True)
    if isinstance(value, list):
        return yaml.SequenceNode(_SEQUENCE, [node_from_value(item, depth + 1) for item in value], flow_style=True)
    if isinstance(value, str) and not isinstance(value, Number):
        # Without quotes, Kubernetes reads 1e3 or 0o14 as a number and y as a boolean, unlike PyYAML.
        return yaml.ScalarNode(STRING, value, style="'" if _AMBIGUOUS.match(value) else None)
    text = str(value) if isinstance(value, Number) else json.dumps(value)
    number = _INTEGER if text.lstrip("-").isdigit() else _FLOAT
    return yaml.ScalarNode({bool: _BOOLEAN, type(None): _NULL}.get(type(value), number), text)


def node_value(node: yaml.Node) -> Any:
    """Return the value of a node. A scalar that is not an integer, a boolean or null is returned as text."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): node_value(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [node_value(item) for item in node.value]
    if node.tag in (_INTEGER, _BOOLEAN, _NULL):
        with suppress(ValueError, KeyError):
            return _CONSTRUCTOR.construct_object(node)
    return node.value


def field_of(node: yaml.Node | None, *path: str) -> yaml.Node | None:
    """Return the node of the field at a path, or None if it does not exist."""
    for name in path:
        if not isinstance(node, yaml.MappingNode):
            return None
        node = next((value for key, value in node.value if key.value == name), None)
    return node


@dataclass(frozen=True, slots=True)
class ItemsAsText:
    """Items whose text replaces a placeholder after PyYAML has written a document, because PyYAML writes slowly."""

    values: list[Any]
    placeholder: str = field(default_factory=lambda: f"items-{token_hex(8)}")


def add_items(spec: yaml.MappingNode, name: str, values: list[Any], *, at_end: bool) -> ItemsAsText | None:
    """Add items before or after those of the list in a field of an object. If the object lacks the field, create it.

    Returns:
        The items, if a placeholder was added instead of them; None if a node was added for each item, because the
        object is written on one line.
    """
    items = None if spec.flow_style else ItemsAsText(values)
    nodes = [yaml.ScalarNode(STRING, items.placeholder)] if items else [node_from_value(value) for value in values]
    existing = field_of(spec, name)
    if isinstance(existing, yaml.SequenceNode) and existing.value:
        existing.value = [*existing.value, *nodes] if at_end else [*nodes, *existing.value]
        existing.flow_style = spec.flow_style
        return items
    # The field does not exist, or is null or an empty list.
    sequence = yaml.SequenceNode(_SEQUENCE, nodes, flow_style=spec.flow_style)
    spec.value = [(key, value) for key, value in spec.value if key.value != name]
    spec.value.append((yaml.ScalarNode(STRING, name), sequence))
    return items


def resolve_aliases(root: yaml.Node) -> None:
    """Replace aliases and merge keys (<<) by copies, so that a change of one place has no effect elsewhere.

    Raises:
        ManifestError: an alias or merge key cannot be resolved, or a manifest cannot contain a value of this type.
    """
    copy = _copied(root, [_MAX_NODES], ())
    root.value, root.tag = copy.value, copy.tag


def _copied(node: yaml.Node, budget: list[int], parents: tuple[int, ...]) -> yaml.Node:
    """Return a copy of a node and all nodes below it.

    Args:
        budget: the number of nodes that may still be copied, in a list so that all calls share the number.
        parents: the `id` of each node that contains this node.
    """
    parents = _with_parent(node, budget, parents)
    if node.tag not in _KNOWN_TAGS:
        raise ManifestError(f"contains the tag {node.tag}, which is not a value of a manifest")
    if isinstance(node, yaml.MappingNode):
        return yaml.MappingNode(node.tag, _pairs(node, budget, parents), flow_style=node.flow_style)
    if isinstance(node, yaml.SequenceNode):
        items = [_copied(item, budget, parents) for item in node.value]
        return yaml.SequenceNode(node.tag, items, flow_style=node.flow_style)
    return yaml.ScalarNode(node.tag, node.value, style=cast("yaml.ScalarNode", node).style)


def _with_parent(node: yaml.Node, budget: list[int], parents: tuple[int, ...]) -> tuple[int, ...]:
    budget[0] -= 1
    if budget[0] < 0 or id(node) in parents:
        raise ManifestError("its aliases cannot be resolved, because there are too many or one contains itself")
    return (*parents, id(node))


def _pairs(node: yaml.MappingNode, budget: list[int], parents: tuple[int, ...]) -> list[tuple[yaml.Node, yaml.Node]]:
    """Return copies of an object's fields: first the merged fields (<<), then its own, which take precedence."""
    own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ManifestError("contains a key that is not a string")
        if key.tag == _MERGE:
            sources = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for source in sources:
                if not isinstance(source, yaml.MappingNode):
                    raise ManifestError("merges (<<) something that has no fields")
                for name, copied_value in _pairs(source, budget, _with_parent(source, budget, parents)):
                    merged.setdefault(name.value, (name, copied_value))
        elif key.value in own:
            raise ManifestError(f"contains the field {key.value} twice in one place")
        else:
            own[key.value] = _copied(key, budget, parents), _copied(value, budget, parents)
    return [*(pair for name, pair in merged.items() if name not in own), *own.values()]


def scalar_text(root: yaml.Node) -> str:
    """Return the text of all scalars of a document. A scalar to which several aliases refer is included once."""
    seen: set[int] = set()
    waiting, texts = [root], []
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            waiting += [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
        else:
            texts.append(str(node.value))
    return "\n".join(texts)
