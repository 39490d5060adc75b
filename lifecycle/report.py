"""A dry run: what the commands would do, shown to a person or as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TextIO, assert_never

from lifecycle.cleanup.plan import NothingKept
from lifecycle.cleanup.run import Cleanup
from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.dns_watch.observation import Unidentified
from lifecycle.dns_watch.preview import Preview
from lifecycle.domain.changes import CreateRecord, DeleteRecord, RecordChange, UpdateRecord
from lifecycle.domain.errors import LifecycleError
from lifecycle.domain.model import Record, describe
from lifecycle.domain.ownership import choose_user
from lifecycle.prune.run import Prune
from lifecycle.settings.models import PruneSettings, Settings

_BOLD, _GREEN, _YELLOW, _RED, _PLAIN = "\x1b[1m", "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"

_NO_CLUSTER = "not asked (no setting needs it)"

_COLOURS = {"create": _GREEN, "update": _YELLOW, "delete": _RED}


@dataclass(frozen=True, slots=True)
class Step:
    """One change that a command would make.

    Attributes:
        action: `create`, `update`, `delete` or `write`.
        kind: `node`, `pre_auth_key`, `file` or `record`.
        what: the thing, in a few words.
        reason: why.
        details: the same for programs; JSON values.
    """

    action: str
    kind: str
    what: str
    reason: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Section:
    """The plan of one command.

    Attributes:
        command: as it is typed.
        steps: what it would do, in order.
        notes: what a person should know besides.
        problems: why the plan is not whole; empty when all could be read.
    """

    command: str
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """A whole dry run.

    Attributes:
        context: where the plan comes from; a value of None could not be read.
    """

    context: dict[str, str | None]
    sections: list[Section]

    @property
    def problems(self) -> list[str]:
        """Why it is not whole; empty when all could be read."""
        return [problem for section in self.sections for problem in section.problems]


def dry_run(
    settings: Settings,
    *,
    kubernetes: str | None,
    headscale: HeadscaleReader,
    cloudflare: CloudflareReader,
    cleanup: Cleanup | None,
    watch: Callable[[], Preview] | None,
) -> Report:
    """Read everything and plan as the commands would; nothing is written anywhere.

    Args:
        settings: for what the report is headed by.
        kubernetes: which cluster is asked; None = none is.
        headscale: asked for its version.
        cloudflare: asked for its zone.
        cleanup: asked for its plan; None = not that command's.
        watch: the same.
    """
    sections = [_cleanup_section(cleanup)] if cleanup else []
    sections += [_dns_watch_section(watch)] if watch else []
    context = _looked_at(settings, kubernetes=kubernetes, headscale=headscale, cloudflare=cloudflare)
    return Report({**context, "name": settings.record_name, "owner": settings.mark}, sections)


def _looked_at(
    settings: Settings, *, kubernetes: str | None, headscale: HeadscaleReader, cloudflare: CloudflareReader
) -> dict[str, str | None]:
    return {
        "kubernetes": kubernetes or _NO_CLUSTER,
        "headscale": _headscale_text(settings),
        "headscale_version": _answer(headscale.version),
        "user": _answer(lambda: choose_user(headscale.users(), settings.headscale_user).name),
        "zone": _answer(cloudflare.zone_name) or settings.cloudflare_zone_id,
    }


def _headscale_text(settings: Settings) -> str:
    if settings.access == "api":
        return settings.headscale_address
    return f"its command line in namespace {settings.headscale_namespace} (HEADSCALE_ACCESS=exec)"


def _answer(read: Callable[[], str]) -> str | None:
    # Why it could not be read stands in the plans, which need the same.
    with suppress(LifecycleError):
        return read()
    return None


def _cleanup_section(cleanup: Cleanup) -> Section:
    section = Section("cleanup")
    settings = cleanup.settings
    try:
        view = cleanup.read()
        if view.records_error is not None:
            section.problems.append(str(view.records_error))
        plan = cleanup.plan(view)
    except LifecycleError as error:
        section.problems.append(str(error))
        return section
    for change in plan.nodes:
        node = change.node
        state = "online" if node.online else "offline"
        section.steps.append(
            Step("delete", "node", f"node {node.id} ({describe(node)}, {state})", change.reason, {"node_id": node.id})
        )
    life = plan.key.life
    user = plan.key.user.name
    path = str(settings.authkey_output_path)
    section.steps += [
        Step(
            "create",
            "pre_auth_key",
            f"a pre-auth key for user {user}, good for {life}",
            "every start needs a fresh one",
            {"user": user},
        ),
        Step("write", "file", path, "the tailscale container reads it there", {"path": path}),
        *(_record_step("delete", change.record, change.reason) for change in plan.records),
    ]
    if plan.kept is not None:
        section.notes.append(f"node {plan.kept.id} stays: Secret {settings.ts_kube_secret} names it")
    if isinstance(view.kept, NothingKept):
        section.notes.append(f"no node stays, as told by Secret {settings.ts_kube_secret}: {view.kept.reason}")
    section.notes += [
        f"node {node.id} stays: it bears the name and is not ours ({describe(node)})" for node in plan.foreign
    ]
    return section


def _dns_watch_section(watch: Callable[[], Preview]) -> Section:
    section = Section("dns-watch")
    try:
        preview = watch()
    except LifecycleError as error:
        section.problems.append(str(error))
        return section
    if isinstance(preview.node, Unidentified):
        section.notes.append(f"it would wait: {preview.node.reason}")
        return section
    section.notes.append(f"this pod's node is {preview.node.id} ({describe(preview.node)})")
    foreign = [event.fields for event in preview.events if event.name == "record.foreign"]
    for record in foreign:
        section.notes.append(
            f"{record['type']} {record['record']} -> {record['content']} is in the way "
            f"(comment: {record['comment'] or 'none'}): {record['advice']}"
        )
    if preview.reason and not foreign:
        section.notes.append(preview.reason)
    section.steps += [
        _planned_step(change)
        for change in preview.changes
        if isinstance(change, CreateRecord | UpdateRecord | DeleteRecord)
    ]
    return section


def _planned_step(change: RecordChange) -> Step:
    match change:
        case CreateRecord(spec, reason):
            details = {"record": spec.name, "type": spec.type, "content": str(spec.address)}
            return Step("create", "record", f"{spec.type} {spec.name} -> {spec.address}", reason, details)
        case UpdateRecord(record, spec, reason):
            details = {"record": spec.name, "type": spec.type, "content": str(spec.address), "was": record.content}
            what = f"{spec.type} {spec.name}: {record.content} -> {spec.address}"
            if record.address == spec.address:
                what = f"{spec.type} {spec.name} -> {spec.address}: {', '.join(spec.differences(record))}"
            return Step("update", "record", what, reason, details)
        case DeleteRecord(record, reason):
            return _record_step("delete", record, reason)
        case _:
            assert_never(change)


def _record_step(action: str, record: Record, reason: str) -> Step:
    details = {"record": record.name, "type": record.type, "content": record.content}
    return Step(action, "record", f"{record.type} {record.name} -> {record.content}", reason, details)


def prune_report(
    settings: PruneSettings,
    *,
    kubernetes: str | None,
    headscale: HeadscaleReader,
    cloudflare: CloudflareReader,
    prune: Prune,
) -> Report:
    """Read everything and plan as `prune` would; nothing is written anywhere."""
    section = Section("prune")
    try:
        services = prune.plan(prune.read())
        for service in services:
            section.steps += [
                Step("delete", "node", f"node {node.id} ({describe(node)})", service.reason, {"node_id": node.id})
                for node in service.nodes
            ]
            section.steps += [_record_step("delete", record, service.reason) for record in service.records]
        prune.checked(services)
    except LifecycleError as error:
        section.problems.append(str(error))
    context = _looked_at(settings, kubernetes=kubernetes, headscale=headscale, cloudflare=cloudflare)
    return Report({**context, "owner": settings.mark}, [section])


def show(report: Report, out: TextIO, *, as_json: bool, colours: bool) -> None:
    """Show the report: to a program as one JSON object, else to a person."""
    if as_json:
        print_json(report, out)
    else:
        print_text(report, out, colours=colours)


def print_text(report: Report, out: TextIO, *, colours: bool) -> None:
    """Show the report to a person."""

    def painted(colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if colours and colour else text

    width = max(len(name) for name in report.context)
    lines = [
        f"{name.replace('_', ' '):<{width}}  {_visible(value or 'could not be read')}"
        for name, value in report.context.items()
    ]
    for section in report.sections:
        lines += ["", painted(_BOLD, f"lifecycle {section.command} would")]
        for step in section.steps:
            lines.append(f"  {painted(_COLOURS.get(step.action, ''), step.action)} {_visible(step.what)}")
            lines.append(f"      because {_visible(step.reason)}")
        if not section.steps and not section.problems:
            lines.append("  change nothing")
        lines += [f"  note: {_visible(note)}" for note in section.notes]
        lines += [f"  {painted(_RED, 'problem:')} {_visible(problem)}" for problem in section.problems]
    lines += ["", "Nothing was written anywhere."]
    out.write("\n".join(lines) + "\n")


def _visible(text: str) -> str:
    """The text on one line and without commands to the terminal, which a record's comment may hold."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


def print_json(report: Report, out: TextIO) -> None:
    """Show the report to a program: one JSON object."""
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
    json.dump(document, out, indent=2, ensure_ascii=False)
    out.write("\n")
