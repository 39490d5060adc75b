"""Find, in the program's source code, the events that it logs, with their levels and keys."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LEVELS = frozenset({"debug", "info", "warning", "error", "exception"})


@dataclass(slots=True)
class Logged:
    """The levels and keys of one event, from all places in the code that log it.

    Attributes:
        keys: `**` stands for keys that come from a dictionary.
    """

    levels: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)


def logged_events(package: Path) -> dict[str, Logged]:
    """Return every event by its name.

    The code logs with `log.info(name, ...)`, or a pure function returns the event `info(name, ...)`, which its caller
    logs.
    """
    events: defaultdict[str, Logged] = defaultdict(Logged)
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call) and node.args):
                levels = {level for method in _values(call.func, function) if (level := _level(method))}
                if not levels:
                    continue
                for name in _values(call.args[0], function):
                    assert isinstance(name, ast.Constant), f"{path}:{call.lineno}: an event's name must be a literal"
                    events[str(name.value)].levels |= levels
                    events[str(name.value)].keys |= {keyword.arg or "**" for keyword in call.keywords}
    return dict(events)


def _level(method: ast.expr) -> str | None:
    """Return the level with which a called function logs; None if it does not log."""
    match method:
        case ast.Attribute(value=ast.Name(id="log"), attr=level) | ast.Name(id=level) if level in LEVELS:
            return "error" if level == "exception" else level
    return None


def _values(expression: ast.expr, function: ast.AST) -> Iterator[ast.expr]:
    """Yield the possible values of an expression: both branches of an `if`, and every assignment to a variable."""
    match expression:
        case ast.IfExp(body=body, orelse=orelse):
            yield from _values(body, function)
            yield from _values(orelse, function)
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
