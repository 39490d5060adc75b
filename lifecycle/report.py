"""Format the result of a dry run as text or as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, assert_never

from lifecycle.domain.changes import (
    Change,
    CreateRecord,
    DeleteNode,
    DeleteRecord,
    UpdateRecord,
    WriteFreshKey,
    WriteKeyMetadata,
)
from lifecycle.domain.model import describe
from lifecycle.domain.text import printable, printable_values
from lifecycle.keyfile.reader import KeyFileReader

_BOLD, _GREEN, _YELLOW, _RED, _RESET = "\x1b[1m", "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"

_COLORS = {"create": _GREEN, "update": _YELLOW, "delete": _RED}


@dataclass(frozen=True, slots=True)
class Step:
    """One change that a command would make.

    Attributes:
        what: a description of the changed object, for people.
        details: values of the changed object, for programs that read the JSON report.
    """

    action: Literal["create", "update", "delete", "write"]
    kind: Literal["node", "pre_auth_key", "file", "record"]
    what: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Section:
    """What one command would change.

    Attributes:
        notes: further information for people.
        problems: the reasons why the plan is incomplete.
    """

    command: str
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, changes: Iterable[Change], *, key_path: Path) -> None:
        """Add the steps of these changes."""
        self.steps += (step for change in changes for step in _steps(change, key_path))


@dataclass(slots=True)
class Report:
    """The result of a dry run.

    Attributes:
        context: the settings and values that the plans are based on; None for a value that could not be read.
    """

    context: dict[str, str | None]
    sections: list[Section]

    @property
    def problems(self) -> list[str]:
        """The reasons why plans are incomplete."""
        return [problem for section in self.sections for problem in section.problems]


def _steps(change: Change, key_path: Path) -> Iterator[Step]:
    match change:
        case DeleteNode(node, reason):
            what = f"node {node.id} ({describe(node)}, {'online' if node.online else 'offline'})"
            yield Step("delete", "node", what, reason, {"node_id": node.id})
        case WriteFreshKey(spec, reason):
            user, path = spec.user.label, str(key_path)
            what = f"a pre-auth key for user {user}, valid for {spec.lifetime}"
            yield Step("create", "pre_auth_key", what, reason, {"user": user})
            yield Step("write", "file", path, "the tailscale container reads the key from it", {"path": path})
        case WriteKeyMetadata(_, reason):
            path = str(KeyFileReader(key_path).metadata_path)
            yield Step("write", "file", path, reason, {"path": path})
        case CreateRecord(spec, reason):
            details = {"record": spec.name, "type": spec.type, "content": str(spec.content)}
            yield Step("create", "record", f"{spec.type} {spec.name} -> {spec.content}", reason, details)
        case UpdateRecord(record, spec, reason):
            details = {"record": spec.name, "type": spec.type, "content": str(spec.content), "was": record.content}
            what = f"{spec.type} {spec.name}: {record.content} -> {spec.content}"
            if spec.has_content_of(record):
                what = f"{spec.type} {spec.name} -> {spec.content}: {', '.join(spec.differences(record))}"
            yield Step("update", "record", what, reason, details)
        case DeleteRecord(record, reason):
            details = {"record": record.name, "type": record.type, "content": record.content}
            yield Step("delete", "record", f"{record.type} {record.name} -> {record.content}", reason, details)
        case _:
            assert_never(change)


def to_text(report: Report, *, colors: bool) -> str:
    """Return the report as text."""

    def colored(color: str, text: str) -> str:
        return f"{color}{text}{_RESET}" if colors and color else text

    lines = printable_values(report.context)
    for section in report.sections:
        lines += ["", colored(_BOLD, f"lifecycle {section.command} would")]
        for step in section.steps:
            lines.append(f"  {colored(_COLORS.get(step.action, ''), step.action)} {printable(step.what)}")
            lines.append(f"      because {printable(step.reason)}")
        if not section.steps and not section.problems:
            lines.append("  change nothing")
        lines += [f"  note: {printable(note)}" for note in section.notes]
        lines += [f"  {colored(_RED, 'problem:')} {printable(problem)}" for problem in section.problems]
    lines += ["", "Nothing was changed."]
    return "\n".join(lines) + "\n"


def to_json_values(report: Report) -> dict[str, Any]:
    """Return the report as JSON values."""
    return {
        "context": report.context,
        "plans": {
            section.command: {
                "changes": [
                    {"action": step.action, "kind": step.kind, "what": step.what, "reason": step.reason, **step.details}
                    for step in section.steps
                ],
                "notes": section.notes,
                "problems": section.problems,
            }
            for section in report.sections
        },
    }
