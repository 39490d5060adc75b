"""Write a report as text or as JSON."""

from __future__ import annotations

from typing import TextIO

from lifecycle.domain.json_text import printable_json
from lifecycle.domain.text import printable
from lifecycle.report.plans import Report

_BOLD, _GREEN, _YELLOW, _RED, _PLAIN = "\x1b[1m", "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"

_COLOURS = {"create": _GREEN, "update": _YELLOW, "delete": _RED}


def show(report: Report, out: TextIO, *, as_json: bool, colours: bool) -> None:
    """Write the report, as one JSON object or as text."""
    if as_json:
        print_json(report, out)
    else:
        print_text(report, out, colours=colours)


def print_text(report: Report, out: TextIO, *, colours: bool) -> None:
    """Write the report as text."""

    def painted(colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if colours and colour else text

    width = max(len(name) for name in report.context)
    lines = [
        f"{name.replace('_', ' '):<{width}}  {printable(value or 'could not be read')}"
        for name, value in report.context.items()
    ]
    for section in report.sections:
        lines += ["", painted(_BOLD, f"lifecycle {section.command} would")]
        for step in section.steps:
            lines.append(f"  {painted(_COLOURS.get(step.action, ''), step.action)} {printable(step.what)}")
            lines.append(f"      because {printable(step.reason)}")
        if not section.steps and not section.problems:
            lines.append("  change nothing")
        lines += [f"  note: {printable(note)}" for note in section.notes]
        lines += [f"  {painted(_RED, 'problem:')} {printable(problem)}" for problem in section.problems]
    lines += ["", "Nothing was changed."]
    out.write("\n".join(lines) + "\n")


def print_json(report: Report, out: TextIO) -> None:
    """Write the report as one JSON object."""
    document = {
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
    out.write(f"{printable_json(document, indent=2)}\n")
