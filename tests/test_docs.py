"""The manual says what the code does: its tables of settings, events, metrics and exit statuses are the real ones."""

from __future__ import annotations

import ast
import contextlib
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lifecycle.cli import arguments_of
from lifecycle.domain import errors
from lifecycle.health.metrics import render_metrics
from lifecycle.health.status import Status, View
from lifecycle.settings.models import COMMANDS, Settings, command_variables, default_text

LEVELS = frozenset({"debug", "info", "warning", "error"})
EVENT = re.compile(r"[a-z_]+\.[a-z_]+")

Row = dict[str, str]


@pytest.fixture(scope="session")
def manual(repository: Path) -> str:
    return (repository / "README.md").read_text()


def section(manual: str, heading: str) -> str:
    """What stands below a heading, up to the next of its kind or a higher one."""
    marks = heading.partition(" ")[0]
    found = re.search(
        rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(marks)}}} |\Z)", manual, flags=re.MULTILINE | re.DOTALL
    )
    assert found, f"README.md has no section {heading!r}"
    return found[1]


def rows(text: str) -> list[Row]:
    """Every row of the tables in a text, by the names of their columns."""
    found: list[Row] = []
    header: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if not header:
            header = cells
        elif set(line) - set("|-: "):
            found.append(dict(zip(header, cells, strict=True)))
    return found


def quoted(cell: str) -> list[str]:
    """What stands in a cell between backticks."""
    return re.findall(r"`([^`]+)`", cell)


# --- Settings -----------------------------------------------------------------------------------------


def default_cell(command: type[Settings], name: str) -> str:
    """What the manual should say about a setting's default."""
    variable = command_variables(command)[name]
    if variable.is_required() or (variable.description or "").startswith("required"):
        return "**required**"
    default = default_text(variable)
    return f"`{default}`" if default else ""


def settings_of(command: str | None) -> dict[str, str]:
    """Name and default of each setting that is one command's alone; of those of all commands for None."""
    shared = command_variables(Settings)
    if command is None:
        return {name: default_cell(Settings, name) for name in shared}
    kind = COMMANDS[command]
    return {name: default_cell(kind, name) for name in command_variables(kind) if name not in shared}


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_the_manuals_settings_and_defaults_are_the_codes(manual: str, command: str | None) -> None:
    heading = f"### Of `{command}` alone" if command else "### Of all commands"
    table = {quoted(row["name"])[0]: row["default"] for row in rows(section(manual, heading))}
    real = settings_of(command)
    assert sorted(set(real) - set(table)) == [], "README.md lacks these settings"
    assert sorted(set(table) - set(real)) == [], "README.md has settings that are none"
    assert table == real, "README.md has other defaults"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_the_manual_explains_each_setting_as_the_help_does(manual: str, command: str | None) -> None:
    heading = f"### Of `{command}` alone" if command else "### Of all commands"
    table = {quoted(row["name"])[0]: row["meaning"] for row in rows(section(manual, heading))}
    variables = command_variables(COMMANDS[command] if command else Settings)
    assert table == {name: variables[name].description for name in table}


def test_each_setting_stands_in_the_manual_once(manual: str) -> None:
    names = [quoted(row["name"])[0] for row in rows(section(manual, "## Settings"))]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


# --- Log events ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Logged:
    """How the code logs one event.

    Attributes:
        levels: all that it is logged at.
        keys: what goes with it; `**` where the code does not spell them out.
    """

    levels: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)


def values_of(expression: ast.expr, function: ast.AST) -> Iterator[ast.expr]:
    """What an expression may be: itself, either side of an `if`, or what its name was set to in the function."""
    match expression:
        case ast.IfExp(body=one, orelse=other):
            yield from values_of(one, function)
            yield from values_of(other, function)
        case ast.Name(id=name) if name in LEVELS:
            yield expression
        case ast.Name(id=name):
            for node in ast.walk(function):
                match node:
                    case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                        yield from values_of(value, function)
        case _:
            yield expression


def level_of(method: ast.expr) -> str | None:
    """The level at which a call of the method logs, or returns an event; None if it does neither."""
    match method:
        case ast.Attribute(value=ast.Name(id="log"), attr=level) if level in LEVELS:
            return level
        case ast.Name(id=level) if level in LEVELS:
            return level
    return None


def logged_by(repository: Path) -> dict[str, Logged]:
    """Every event of the code: the first argument of each call of a log's method."""
    found: defaultdict[str, Logged] = defaultdict(Logged)
    for path in sorted((repository / "lifecycle").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for call in (node for node in ast.walk(function) if isinstance(node, ast.Call) and node.args):
                levels = {level for level in map(level_of, values_of(call.func, function)) if level is not None}
                for event in values_of(call.args[0], function) if levels else ():
                    name = event.value if isinstance(event, ast.Constant) else None
                    assert isinstance(name, str), f"{path}:{call.lineno}: an event's name is a constant"
                    found[name].levels |= levels
                    found[name].keys |= {keyword.arg or "**" for keyword in call.keywords}
    return dict(found)


@pytest.fixture(scope="session")
def logged(repository: Path) -> dict[str, Logged]:
    return logged_by(repository)


@pytest.fixture(scope="session")
def told(manual: str) -> dict[str, Row]:
    """The manual's row of each event; several events may share one."""
    return {event: row for row in rows(section(manual, "## Log events")) for event in quoted(row["event"])}


def test_the_manuals_events_are_the_codes(logged: dict[str, Logged], told: dict[str, Row]) -> None:
    assert sorted(set(logged) - set(told)) == [], "README.md lacks these events"
    assert sorted(set(told) - set(logged)) == [], "README.md has events that nothing logs"


def test_each_events_name_is_a_noun_and_a_verb(logged: dict[str, Logged]) -> None:
    assert [event for event in logged if EVENT.fullmatch(event) is None] == []


def test_the_manuals_levels_are_the_codes(logged: dict[str, Logged], told: dict[str, Row]) -> None:
    levels = {event: set(re.findall(r"[a-z]+", row["level"])) & LEVELS for event, row in told.items()}
    assert levels == {event: logged[event].levels for event in told if event in logged}


def test_the_manuals_keys_are_logged(logged: dict[str, Logged], told: dict[str, Row]) -> None:
    """All that an event may have, and no more; what is not spelt out in the code needs no name here."""
    promised = {event: set(quoted(row["keys"])) - set(COMMANDS) for event, row in told.items()}
    assert promised == {event: logged[event].keys - {"**"} for event in told}


# --- Health port --------------------------------------------------------------------------------------


def test_the_manuals_metrics_and_their_labels_are_the_codes(manual: str) -> None:
    """As they are while everything is known: what is not known is not shown."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    status = Status(timedelta(), timedelta(), view=View(node_expires_at=now, api_key_expires_at=now))
    shown: defaultdict[str, set[str]] = defaultdict(set)
    _, text = render_metrics(status, accept="")
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            shown[re.sub("_(sum|count)$", "", sample.name)] |= set(sample.labels)
    prefix = "tailscale_lifecycle_"
    table = rows(section(manual, "## Health port"))
    column = f"metric, with the prefix `{prefix}`"
    told = {prefix + name: set(quoted(row["labels"])) for row in table if column in row for name in quoted(row[column])}
    assert told == {name: labels for name, labels in shown.items() if name.startswith(prefix)}
    assert "`process_*`" in section(manual, "## Health port")
    assert {name.partition("_")[0] for name in shown if not name.startswith(prefix)} == {"process"}


def test_the_manuals_paths_of_the_health_port_are_the_codes(manual: str, repository: Path) -> None:
    told = {quoted(row["path"])[0] for row in rows(section(manual, "## Health port")) if "path" in row}
    assert told == set(re.findall(r'"(/[a-z]+)"', (repository / "lifecycle/health/server.py").read_text()))


# --- Exit statuses ------------------------------------------------------------------------------------


def test_the_manuals_exit_statuses_are_the_codes(manual: str) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    real = {0, *(kind.exit_status for kind in kinds if issubclass(kind, errors.LifecycleError))}
    assert {int(row["status"]) for row in rows(section(manual, "## Exit status"))} == real


def test_the_manual_has_each_command(manual: str) -> None:
    """Each row is a command line that is understood, and each command and option has one."""
    lines = [quoted(row["command"]) for row in rows(section(manual, "## Commands"))]
    told = {word for typed in lines for line in typed for word in line.removeprefix("lifecycle").split()}
    help_texts = [told_by_help(arguments) for arguments in ([], *([command] for command in COMMANDS))]
    known = {word for text in help_texts for word in re.findall(r"(?<![\w-])--[a-z-]+", text)}
    assert told - {"NAME", "json"} == {*COMMANDS, *known}


def told_by_help(arguments: list[str]) -> str:
    """What a command's help says of its options; the settings, which follow, left out."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
        arguments_of([*arguments, "--help"])
    return out.getvalue().partition("settings come from")[0]
