"""The events that the code logs, found in its syntax tree."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LEVELS = frozenset({"debug", "info", "warning", "error", "exception"})


@dataclass(slots=True)
class Logged:
    """How the code logs one event.

    Attributes:
        levels: all of its levels.
        keys: all of its keys; `**` where the code does not spell them out.
    """

    levels: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)


def logged_events(package: Path) -> dict[str, Logged]:
    """Return every event by name: of calls like `log.info(name, ...)`, and of `info(name, ...)` in pure functions."""
    found: defaultdict[str, Logged] = defaultdict(Logged)
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call) and node.args):
                levels = {level for method in _values(call.func, function) if (level := _level(method))}
                for name in _values(call.args[0], function) if levels else ():
                    assert isinstance(name, ast.Constant), f"{path}:{call.lineno}: an event's name is a constant"
                    found[str(name.value)].levels |= levels
                    found[str(name.value)].keys |= {keyword.arg or "**" for keyword in call.keywords}
    return dict(found)


def _level(method: ast.expr) -> str | None:
    match method:
        case ast.Attribute(value=ast.Name(id="log"), attr=level) | ast.Name(id=level) if level in LEVELS:
            return "error" if level == "exception" else level
    return None


def _values(expression: ast.expr, function: ast.AST) -> Iterator[ast.expr]:
    """Yield what an expression may be: both sides of an `if`, and what a name is set to in the function."""
    match expression:
        case ast.IfExp(body=one, orelse=other):
            yield from _values(one, function)
            yield from _values(other, function)
        case ast.Name(id=name):
            assigned = [
                node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets)
            ]
            for value in assigned:
                yield from _values(value, function)
            if not assigned:
                yield expression
        case _:
            yield expression
