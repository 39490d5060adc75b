"""Run `--dry-run` and `status` with clients that can only read, and return a report."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lifecycle import __version__
from lifecycle.cleanup.observe import ReadState, cleanup_config
from lifecycle.cleanup.observe import observe as observe_cleanup
from lifecycle.cleanup.plan import plan_cleanup
from lifecycle.clients.interface import interface_addresses
from lifecycle.dns_watch.decide import decide
from lifecycle.dns_watch.observe import observe as observe_watch
from lifecycle.dns_watch.observe import vpn_interface, watch_config
from lifecycle.dns_watch.state import Moment, RecordState, State
from lifecycle.domain.changes import DeleteNode, DeleteRecord
from lifecycle.domain.errors import ApiError, LifecycleError
from lifecycle.domain.model import IpAddress, Node, describe
from lifecycle.domain.ownership import choose_user
from lifecycle.domain.text import timestamp
from lifecycle.prune.observe import observe as observe_prune
from lifecycle.prune.observe import prune_config
from lifecycle.prune.plan import check_limit, plan_prune, skip_reason
from lifecycle.readers import Readers
from lifecycle.report import Report, Section
from lifecycle.runtime.clock import utc_now
from lifecycle.runtime.retry import no_retries
from lifecycle.settings.models import CleanupSettings, DnsWatchSettings, PruneSettings, Settings, StatusSettings
from lifecycle.status.assess import assess_workloads
from lifecycle.status.observe import observe as observe_status
from lifecycle.status.observe import status_config
from lifecycle.status.report import make_shortener, to_json_values
from lifecycle.wiring.readers import connect_cluster, connect_readers, state_reader

if TYPE_CHECKING:
    from lifecycle.clients.kubernetes.api import Cluster


def plan_commands(settings: Settings, *, name: str | None = None) -> Report:
    """Return what each command that uses these settings would change.

    Args:
        settings: the settings of one command, or of `cleanup` and `dns-watch` together.
        name: the only workload that `prune` would delete; None = every workload that no longer runs (PRUNE_AFTER).
    """
    with ExitStack() as stack:
        cluster = connect_cluster(settings, stack, only_reads=True)
        readers = connect_readers(settings, stack, cluster)
        sections = []
        if isinstance(settings, CleanupSettings):
            read_state = state_reader(settings, no_retries(), cluster)
            sections.append(cleanup_section(settings, readers, read_state, now=utc_now()))
        if isinstance(settings, DnsWatchSettings):
            addresses = interface_addresses(settings.tailscale_interface)
            sections.append(watch_section(settings, readers, addresses, now=utc_now()))
        if isinstance(settings, PruneSettings):
            sections.append(_prune_section(settings, readers, name, now=utc_now()))
        return Report(read_context(settings, readers, cluster), sections)


def status(settings: StatusSettings, *, redact: bool) -> dict[str, Any]:
    """Return the state of every workload of DNS_OWNER, as JSON values. `redact` shortens names and addresses."""
    with ExitStack() as stack:
        cluster = connect_cluster(settings, stack, only_reads=True)
        readers = connect_readers(settings, stack, cluster)
        return status_report(settings, readers, cluster, now=utc_now(), redact=redact)


def status_report(
    settings: StatusSettings, readers: Readers, cluster: Cluster | None, *, now: datetime, redact: bool
) -> dict[str, Any]:
    """Return the result of `status`, from what these clients read."""
    observation = observe_status(settings, readers)
    server_time = readers.headscale.server_time(now)
    rows, problems = assess_workloads(observation, config=status_config(settings), now=server_time)
    expires_at = observation.api_key_expires_at
    no_expiry = "never, or unknown" if observation.nodes is not None and settings.access == "api" else None
    head = {
        "version": __version__,
        "clock": timestamp(now) + (f", by Headscale {timestamp(server_time)}" if observation.nodes is not None else ""),
        **read_context(settings, readers, cluster),
        "api_key_expires_at": timestamp(expires_at) if expires_at else no_expiry,
    }
    if not redact:
        return to_json_values(head, rows, problems)
    owner = settings.mark.partition(" ")[2]
    words = [owner, settings.namespace, settings.headscale_namespace, settings.headscale_user or ""]
    words += (user.label for user in observation.users)
    words += cluster.access.names if cluster else ()
    # The descriptions of foreign nodes and records can contain any text, so every word of them is shortened.
    return to_json_values(head, rows, problems, shorten=make_shortener([*words, *(row.in_the_way for row in rows)]))


def read_context(settings: Settings, readers: Readers, cluster: Cluster | None) -> dict[str, str | None]:
    """Return the settings and values that the plans are based on. A value that could not be read is None."""
    headscale = f"the CLI in namespace {settings.headscale_namespace} (HEADSCALE_ACCESS=exec)"
    values = {
        "kubernetes": cluster.access.description if cluster else "not used (no setting needs it)",
        "headscale": settings.effective_headscale_url if settings.access == "api" else headscale,
        "headscale_version": _read(readers.headscale.version),
        "user": _read(lambda: choose_user(readers.headscale.users(), settings.headscale_user).label),
        "zone": _read(readers.cloudflare.zone_name) or settings.cloudflare_zone_id,
    }
    name = {"name": ", ".join(settings.names)} if settings.is_for_one_workload else {}
    return {**values, **name, "owner": settings.mark}


def _read(read: Callable[[], str]) -> str | None:
    # The error is ignored here, because each plan that needs the value reports it.
    with suppress(LifecycleError):
        return read()
    return None


def cleanup_section(
    settings: CleanupSettings, readers: Readers, read_state: ReadState | None, *, now: datetime
) -> Section:
    """Return what cleanup would change."""
    section = Section("cleanup")
    try:
        observation = observe_cleanup(settings, readers, read_state=read_state)
        plan = plan_cleanup(observation, config=cleanup_config(settings), now=readers.headscale.server_time(now))
        section.add([*plan.nodes, plan.key, *plan.records], key_path=settings.authkey_output_path)
        match plan.kept:
            case str(reason):
                section.notes.append(f"no node is kept: {reason}")
            case Node() as node:
                section.notes.append(f"node {node.id} is kept: the tailscale container's state Secret contains its id")
        section.notes += [
            f"node {node.id} stays: it has the hostname, but the program does not own it ({describe(node)})"
            for node in plan.foreign
        ]
        if isinstance(observation.records, LifecycleError):
            raise observation.records
        readers.cloudflare.check_zone(settings.record_name)
    except LifecycleError as error:
        section.problems.append(str(error))
    return section


def watch_section(
    settings: DnsWatchSettings, readers: Readers, addresses: Iterable[IpAddress] | None, *, now: datetime
) -> Section:
    """Return what one pass of dns-watch would change when it no longer waits for a VPN interface."""
    section = Section("dns-watch")
    config = watch_config(settings)
    # With this value, dns-watch no longer waits for a VPN interface.
    state = State(interface_seen_s=float("-inf"), records=RecordState(reason=""))

    def clock() -> Moment:
        return Moment(readers.headscale.server_time(now), monotonic_s=0.0, jitter=0.0)

    try:
        for name in settings.names:
            readers.cloudflare.check_zone(name)
        observation = observe_watch(state, readers, vpn_interface(addresses, config), config=config, clock=clock)
        for read in (observation.node, observation.records):
            if isinstance(read, ApiError):
                raise read
    except LifecycleError as error:
        section.problems.append(str(error))
        return section
    decision = decide(state, observation, config=config, now=clock())
    section.add(decision.changes, key_path=settings.authkey_output_path)
    reason = decision.state.records.reason
    if not isinstance(observation.node, Node):
        section.notes.append(f"dns-watch would wait, because {reason}")
        return section
    node = observation.node
    section.notes.append(f"this pod's node is {node.id} ({describe(node)})")
    foreign = [event.fields for event in decision.events if event.name == "record.foreign"]
    section.notes += [
        f"{record['type']} {record['record']} -> {record['content']} is in the way "
        f"(comment: {record['comment'] or 'none'}): {record['advice']}"
        for record in foreign
    ]
    if reason and not decision.changes and not foreign:
        section.notes.append(reason)
    return section


def _prune_section(settings: PruneSettings, readers: Readers, name: str | None, *, now: datetime) -> Section:
    section = Section("prune")
    config = prune_config(settings, name=name)
    try:
        observation = observe_prune(settings, readers)
        if reason := skip_reason(observation, config):
            section.notes.append(reason)
        workloads = plan_prune(observation, config=config, now=readers.headscale.server_time(now))
        for workload in workloads:
            section.add(
                [
                    *(DeleteNode(node, workload.reason) for node in workload.nodes),
                    *(DeleteRecord(record, workload.reason) for record in workload.records),
                ],
                key_path=settings.authkey_output_path,
            )
        check_limit(workloads, config=config)
    except LifecycleError as error:
        section.problems.append(str(error))
    return section
