"""Dry runs: read everything with clients that cannot write, and return the plans."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from lifecycle.cleanup.preview import preview as preview_cleanup
from lifecycle.clients.interface import interface_addresses
from lifecycle.dns_watch.preview import preview as preview_watch
from lifecycle.prune.preview import preview as preview_prune
from lifecycle.report.plans import Report, dry_run, prune_report
from lifecycle.runtime.clock import utc_now
from lifecycle.runtime.retry import once
from lifecycle.settings.models import CleanupSettings, DnsWatchSettings, PruneSettings, Settings
from lifecycle.wiring.readers import connect_cluster, connect_readers, state_reader


def plan_commands(settings: Settings) -> Report:
    """Return the plans of the commands whose settings these are: `cleanup`, `dns-watch` or both."""
    with ExitStack() as stack:
        cluster = connect_cluster(settings, stack, only_reads=True)
        readers = connect_readers(settings, once(), stack, cluster)
        cleanup = watch = None
        if isinstance(settings, CleanupSettings):
            cleanup = partial(
                preview_cleanup,
                settings,
                headscale=readers.headscale,
                cloudflare=readers.cloudflare,
                read_state=state_reader(settings, once(), cluster),
                now=utc_now(),
            )
        if isinstance(settings, DnsWatchSettings):
            interface = interface_addresses(settings.tailscale_interface)
            watch = partial(preview_watch, settings, readers, interface, now=utc_now())
        return dry_run(
            settings,
            kubernetes=cluster.description if cluster else None,
            headscale=readers.headscale,
            cloudflare=readers.cloudflare,
            cleanup=cleanup,
            watch=watch,
        )


def plan_prune(settings: PruneSettings, *, name: str | None) -> Report:
    """Return the plan of `prune`."""
    with ExitStack() as stack:
        cluster = connect_cluster(settings, stack, only_reads=True)
        readers = connect_readers(settings, once(), stack, cluster)
        prune = partial(
            preview_prune,
            settings,
            name=name,
            headscale=readers.headscale,
            cloudflare=readers.cloudflare,
            now=utc_now(),
        )
        return prune_report(
            settings,
            kubernetes=cluster.description if cluster else None,
            headscale=readers.headscale,
            cloudflare=readers.cloudflare,
            prune=prune,
        )
