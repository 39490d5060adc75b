"""Run cleanup, dns-watch, prune --yes and inject. `lifecycle.dry_run` has the dry runs and the status report."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import ExitStack, closing
from datetime import timedelta
from functools import partial
from threading import Event
from time import monotonic

from lifecycle.domain.errors import LifecycleError, StoppedError
from lifecycle.runtime.clock import utc_now
from lifecycle.runtime.loop import repeat
from lifecycle.runtime.retry import RetryPolicy, no_retries
from lifecycle.runtime.stop import StopEvent
from lifecycle.settings.load import settings_to_pass_on
from lifecycle.settings.models import CleanupSettings, DnsWatchSettings, InjectSettings, PruneSettings
from lifecycle.wiring.readers import connect_cluster, state_reader
from lifecycle.wiring.writers import connect_writers, writing_kubernetes_events

# The time in which `cleanup` may retry requests to Headscale. If a thousand pods start at the same time, a Headscale
# server with one core needs ten minutes to answer all of them.
CLEANUP_RETRY_BUDGET = timedelta(minutes=15)
# The time in which `prune` may retry requests to Headscale. It has this time again after the wait before its deletions.
# The time is short, because `prune` runs daily, so the next run repeats what failed.
PRUNE_RETRY_BUDGET = timedelta(minutes=2)


def cleanup(settings: CleanupSettings, stop: Event) -> None:
    """Delete the nodes and records of earlier pods, and write a fresh key."""
    from lifecycle.cleanup.run import Cleanup  # noqa: PLC0415 - each command imports only what it uses

    with ExitStack() as stack, writing_kubernetes_events(settings):
        policy = RetryPolicy(CLEANUP_RETRY_BUDGET, stop)
        cluster = connect_cluster(settings, stack)
        Cleanup(
            settings,
            writers=connect_writers(settings, policy, stack, cluster),
            now=utc_now,
            stop=stop,
            read_state=state_reader(settings, policy, cluster),
        ).run()


def dns_watch(settings: DnsWatchSettings, stop: StopEvent, *, only_once: bool) -> None:
    """Keep the record in sync until `stop` is set, or with `only_once` until the first pass that finds the node."""
    from lifecycle.clients.interface import InterfaceEvents, interface_addresses  # noqa: PLC0415 - as above
    from lifecycle.dns_watch.loop import DnsWatch, new_status  # noqa: PLC0415
    from lifecycle.health.server import serve  # noqa: PLC0415

    with ExitStack() as stack, writing_kubernetes_events(settings):
        status = new_status(settings)
        writers = connect_writers(
            settings, no_retries(), stack, connect_cluster(settings, stack), on_outcome=status.count_request
        )
        watch = DnsWatch(
            settings,
            writers=writers,
            interface=partial(interface_addresses, settings.tailscale_interface),
            now=utc_now,
            status=status,
        )
        if not only_once:
            stack.callback(serve(status, address=settings.health_address, port=settings.health_port))
        # `lifecycle.__main__` turned garbage collection off. The objects that exist now are needed until the process
        # ends, so only later ones are collected.
        gc.collect()
        gc.freeze()
        gc.enable()
        events = stack.enter_context(closing(InterfaceEvents(stop)))

        def pause(left_s: float) -> None:
            events.wait(left_s, is_settled=watch.state.is_registered)

        repeat(
            watch.run_pass,
            stop=stop,
            should_wake=watch.interface_changed,
            pause=pause if settings.tailscale_interface else stop.wait,
            monotonic=monotonic,
            finished=lambda: only_once and watch.state.is_registered,
        )
        records = watch.state.records
        if only_once and not records.in_sync:
            if stop.is_set():
                raise StoppedError("stopped on request before the DNS record was in sync; nothing needs to be undone")
            raise LifecycleError(f"The DNS record is out of sync: {records.reason}")


def prune(settings: PruneSettings, stop: Event, *, name: str | None) -> None:
    """Delete the nodes and records of workloads that no longer run, or of the workload `name` even if it runs."""
    from lifecycle.prune.run import Prune  # noqa: PLC0415 - only prune needs this import

    with ExitStack() as stack:
        policy = RetryPolicy(PRUNE_RETRY_BUDGET, stop)
        cluster = connect_cluster(settings, stack)
        writers = connect_writers(settings, policy, stack, cluster)
        Prune(settings, writers=writers, name=name, now=utc_now, stop=stop, renew_budget=policy.renew_budget).run()


def inject(settings: InjectSettings, files: Sequence[str], with_state_secrets: bool) -> str:  # noqa: FBT001 - an option
    """Return manifests with containers added to labelled workloads, and optionally Secrets for tailscale's state."""
    from lifecycle.inject.input import read  # noqa: PLC0415
    from lifecycle.inject.manifests import inject as add_containers  # noqa: PLC0415 - only inject needs these

    return add_containers(read(files), settings, settings_to_pass_on(settings), with_state_secrets=with_state_secrets)
