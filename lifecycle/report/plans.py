"""Collect what the commands would change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, assert_never

from lifecycle.cleanup.plan import NothingKept
from lifecycle.cleanup.preview import Preview as CleanupPreview
from lifecycle.clients.cloudflare.reader import CloudflareReader
from lifecycle.clients.headscale.reader import HeadscaleReader
from lifecycle.dns_watch.observation import Unidentified
from lifecycle.dns_watch.preview import Preview as WatchPreview
from lifecycle.domain.changes import (
    CreateRecord,
    DeleteNode,
    DeleteRecord,
    RecordChange,
    UpdateRecord,
    WriteFreshKey,
    WriteKeyMetadata,
)
from lifecycle.domain.errors import LifecycleError
from lifecycle.domain.model import Node, describe
from lifecycle.domain.ownership import choose_user
from lifecycle.keyfile.reader import KeyFileReader
from lifecycle.prune.preview import Preview as PrunePreview
from lifecycle.settings.models import PruneSettings, Settings

_NO_CLUSTER = "not used (no setting needs it)"

Change: TypeAlias = DeleteNode | WriteFreshKey | WriteKeyMetadata | RecordChange


@dataclass(frozen=True, slots=True)
class Step:
    """One change that a command would make.

    Attributes:
        action: `create`, `update`, `delete` or `write`.
        kind: `node`, `pre_auth_key`, `file` or `record`.
        what: what is changed, for people.
        reason: why.
        details: what is changed, for programs; JSON values.
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
        command: the command's name.
        steps: what it would change, in order.
        notes: further information for people.
        problems: why the plan is incomplete.
    """

    command: str
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """The result of a dry run.

    Attributes:
        context: what the plans are based on; None for a value that could not be read.
    """

    context: dict[str, str | None]
    sections: list[Section]

    @property
    def problems(self) -> list[str]:
        """Why the plans are incomplete."""
        return [problem for section in self.sections for problem in section.problems]


def dry_run(
    settings: Settings,
    *,
    kubernetes: str | None,
    headscale: HeadscaleReader,
    cloudflare: CloudflareReader,
    cleanup: Callable[[], CleanupPreview] | None,
    watch: Callable[[], WatchPreview] | None,
) -> Report:
    """Return the plans of the commands.

    Args:
        settings: for the context.
        kubernetes: the cluster; None if none is used.
        headscale: for the context.
        cloudflare: for the context.
        cleanup: returns that command's plan; None to leave it out.
        watch: the same for dns-watch.
    """
    sections = [_cleanup_section(settings, cleanup)] if cleanup else []
    sections += [_dns_watch_section(settings, watch)] if watch else []
    context = _context(settings, kubernetes=kubernetes, headscale=headscale, cloudflare=cloudflare)
    return Report({**context, "name": settings.record_name, "owner": settings.mark}, sections)


def _context(
    settings: Settings, *, kubernetes: str | None, headscale: HeadscaleReader, cloudflare: CloudflareReader
) -> dict[str, str | None]:
    return {
        "kubernetes": kubernetes or _NO_CLUSTER,
        "headscale": _headscale_text(settings),
        "headscale_version": _read(headscale.version),
        "user": _read(lambda: choose_user(headscale.users(), settings.headscale_user).label),
        "zone": _read(cloudflare.zone_name) or settings.cloudflare_zone_id,
    }


def _headscale_text(settings: Settings) -> str:
    if settings.access == "api":
        return settings.headscale_address
    return f"the CLI in namespace {settings.headscale_namespace} (HEADSCALE_ACCESS=exec)"


def _read(read: Callable[[], str]) -> str | None:
    # The plans need the same value and report the reason.
    with suppress(LifecycleError):
        return read()
    return None


def _cleanup_section(settings: Settings, cleanup: Callable[[], CleanupPreview]) -> Section:
    section = Section("cleanup")
    try:
        preview = cleanup()
    except LifecycleError as error:
        section.problems.append(str(error))
        return section
    seen, plan = preview.seen, preview.plan
    if seen.records_error is not None:
        section.problems.append(str(seen.records_error))
    changes: list[Change] = [*plan.nodes, plan.key, *plan.records]
    section.steps += _steps(changes, key_path=settings.authkey_output_path)
    match plan.kept:
        case NothingKept(reason):
            section.notes.append(f"no node is kept: {reason}")
        case Node() as node:
            section.notes.append(f"node {node.id} is kept: the state Secret names it")
    section.notes += [
        f"node {node.id} stays: it has the name and is not ours ({describe(node)})" for node in plan.foreign
    ]
    return section


def _dns_watch_section(settings: Settings, watch: Callable[[], WatchPreview]) -> Section:
    section = Section("dns-watch")
    try:
        preview = watch()
    except LifecycleError as error:
        section.problems.append(str(error))
        return section
    section.steps += _steps(preview.changes, key_path=settings.authkey_output_path)
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
    return section


def _steps(changes: Iterable[Change], *, key_path: Path) -> list[Step]:
    return [step for change in changes for step in _steps_of(change, key_path)]


def _steps_of(change: Change, key_path: Path) -> list[Step]:
    match change:
        case DeleteNode(node, reason):
            state = "online" if node.online else "offline"
            what = f"node {node.id} ({describe(node)}, {state})"
            return [Step("delete", "node", what, reason, {"node_id": node.id})]
        case WriteFreshKey(spec, reason):
            user, path = spec.user.label, str(key_path)
            what = f"a pre-auth key for user {user}, valid for {spec.life}"
            return [
                Step("create", "pre_auth_key", what, reason, {"user": user}),
                Step("write", "file", path, "the tailscale container reads the key from it", {"path": path}),
            ]
        case WriteKeyMetadata(_, reason):
            path = str(KeyFileReader(key_path).metadata_path)
            return [Step("write", "file", path, reason, {"path": path})]
        case CreateRecord(spec, reason):
            details = {"record": spec.name, "type": spec.type, "content": str(spec.address)}
            return [Step("create", "record", f"{spec.type} {spec.name} -> {spec.address}", reason, details)]
        case UpdateRecord(record, spec, reason):
            details = {"record": spec.name, "type": spec.type, "content": str(spec.address), "was": record.content}
            what = f"{spec.type} {spec.name}: {record.content} -> {spec.address}"
            if record.address == spec.address:
                what = f"{spec.type} {spec.name} -> {spec.address}: {', '.join(spec.differences(record))}"
            return [Step("update", "record", what, reason, details)]
        case DeleteRecord(record, reason):
            details = {"record": record.name, "type": record.type, "content": record.content}
            return [Step("delete", "record", f"{record.type} {record.name} -> {record.content}", reason, details)]
        case _:
            assert_never(change)


def prune_report(
    settings: PruneSettings,
    *,
    kubernetes: str | None,
    headscale: HeadscaleReader,
    cloudflare: CloudflareReader,
    prune: Callable[[], PrunePreview],
) -> Report:
    """Return the plan of prune."""
    section = Section("prune")
    try:
        preview = prune()
    except LifecycleError as error:
        section.problems.append(str(error))
    else:
        for workload in preview.workloads:
            changes: list[Change] = [DeleteNode(node, workload.reason) for node in workload.nodes]
            changes += [DeleteRecord(record, workload.reason) for record in workload.records]
            section.steps += _steps(changes, key_path=settings.authkey_output_path)
        if preview.refusal is not None:
            section.problems.append(str(preview.refusal))
    context = _context(settings, kubernetes=kubernetes, headscale=headscale, cloudflare=cloudflare)
    return Report({**context, "owner": settings.mark}, [section])
