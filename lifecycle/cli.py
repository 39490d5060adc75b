"""Arguments in, exit status out; where what services.py connects is put together into commands."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, NoReturn

import structlog

import lifecycle
from lifecycle import cleanup, dns_watch, prune
from lifecycle.domain.errors import EXIT_FAILED, ConfigError, LifecycleError
from lifecycle.runtime.logs import configure_logs
from lifecycle.runtime.loop import repeat
from lifecycle.runtime.retry import RetryBudget, once, retrying
from lifecycle.runtime.stop import stop_event
from lifecycle.runtime.termination import write_termination_message
from lifecycle.settings.load import environment, load, near_misses
from lifecycle.settings.models import (
    COMMANDS,
    CleanupSettings,
    Command,
    DnsWatchSettings,
    DryRunSettings,
    PruneSettings,
    Settings,
    command_variables,
)
from lifecycle.settings.reference import changed, default_text
from lifecycle.wiring import connect_cluster, connect_readers, connect_writers, state_reader, utc_now

if TYPE_CHECKING:
    from lifecycle.report.plans import Report

log = structlog.get_logger()

# How long `cleanup` waits in all for a Headscale that does not answer; `prune` at each of its looks.
HEADSCALE_RETRY_BUDGET = timedelta(minutes=2)


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Returns:
        The exit status: 0 done or stopped on request, 1 could not, 2 usage or settings.
    """
    options = arguments_of(arguments)
    reports = options.dry_run or (options.command == "prune" and not options.yes)
    configure_logs(console=sys.stdout.isatty(), to_stderr=reports)
    try:
        match options.command:
            case "prune" if reports:
                return _prune_report(options.name, as_json=options.output == "json")
            case "prune":
                _prune(options.name)
            case command if reports:
                return _dry_run(command, as_json=options.output == "json")
            case "cleanup":
                _cleanup()
            case _:
                _dns_watch(only_once=options.once)
    except LifecycleError as error:
        event = "settings.invalid" if isinstance(error, ConfigError) else "command.failed"
        log.error(event, error=str(error), error_type=type(error).__name__)
        write_termination_message(str(error))
        return error.exit_status
    return 0


def _cleanup() -> None:
    from lifecycle.cleanup.run import Cleanup  # noqa: PLC0415 - the other commands do without it

    settings = _loaded(CleanupSettings)
    stop = _stop_event()
    with ExitStack() as stack:
        policy = retrying(patience=RetryBudget(HEADSCALE_RETRY_BUDGET), stop=stop)
        cluster = connect_cluster(settings, stack)
        Cleanup(
            settings,
            writers=connect_writers(settings, policy, stack, cluster),
            now=utc_now,
            stop=stop,
            read_state=state_reader(settings, policy, cluster),
        ).run()


def _dns_watch(*, only_once: bool) -> None:
    # As above: http.server is no small thing.
    from lifecycle.clients.interface import interface_addresses  # noqa: PLC0415
    from lifecycle.dns_watch.loop import DnsWatch, new_status  # noqa: PLC0415
    from lifecycle.health.server import serve  # noqa: PLC0415

    settings = _loaded(DnsWatchSettings)
    stop = stop_event(0, lambda signal: log.info("stop.requested", signal=signal))
    with ExitStack() as stack:
        status = new_status(settings)
        writers = connect_writers(
            settings, once(), stack, connect_cluster(settings, stack), observe=status.count_request
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
        until_registered = (lambda: watch.state.is_registered) if only_once else (lambda: False)
        repeat(watch.run_pass, stop=stop, wake=watch.interface_changed, monotonic=monotonic, finished=until_registered)
        records = watch.state.records
        if only_once and not stop.is_set() and not records.in_sync:
            raise LifecycleError(f"The DNS record is out of sync: {records.reason}")


def _dry_run(only: str | None, *, as_json: bool) -> int:
    # Only a dry run needs these.
    from lifecycle.cleanup.preview import preview as preview_cleanup  # noqa: PLC0415
    from lifecycle.clients.interface import interface_addresses  # noqa: PLC0415
    from lifecycle.dns_watch.preview import preview as preview_watch  # noqa: PLC0415
    from lifecycle.report.plans import dry_run  # noqa: PLC0415

    settings = _loaded(COMMANDS[only] if only else DryRunSettings, quiet=True)
    _stop_event(quiet=True)
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
        report = dry_run(
            settings,
            kubernetes=cluster.description if cluster else None,
            headscale=readers.headscale,
            cloudflare=readers.cloudflare,
            cleanup=cleanup,
            watch=watch,
        )
    return _shown(report, as_json=as_json)


def _shown(report: Report, *, as_json: bool) -> int:
    """Show a report; the exit status."""
    from lifecycle.report.output import show  # noqa: PLC0415 - as above

    show(report, sys.stdout, as_json=as_json, colours=sys.stdout.isatty())
    if not report.problems:
        return 0
    write_termination_message("\n".join(report.problems))
    return EXIT_FAILED


def _prune(name: str | None) -> None:
    from lifecycle.prune.run import Prune  # noqa: PLC0415 - the other commands do without it

    settings = _loaded(PruneSettings)
    stop = _stop_event()
    with ExitStack() as stack:
        budget = RetryBudget(HEADSCALE_RETRY_BUDGET)
        cluster = connect_cluster(settings, stack)
        writers = connect_writers(settings, retrying(patience=budget, stop=stop), stack, cluster)
        Prune(settings, writers=writers, name=name, now=utc_now, stop=stop, renew_budget=budget.renew).run()


def _prune_report(name: str | None, *, as_json: bool) -> int:
    from lifecycle.prune.preview import preview  # noqa: PLC0415 - as above
    from lifecycle.report.plans import prune_report  # noqa: PLC0415

    settings = _loaded(PruneSettings, quiet=True)
    _stop_event()
    with ExitStack() as stack:
        cluster = connect_cluster(settings, stack, only_reads=True)
        readers = connect_readers(settings, once(), stack, cluster)
        prune = partial(
            preview,
            settings,
            name=name,
            headscale=readers.headscale,
            cloudflare=readers.cloudflare,
            now=utc_now(),
        )
        report = prune_report(
            settings,
            kubernetes=cluster.description if cluster else None,
            headscale=readers.headscale,
            cloudflare=readers.cloudflare,
            prune=prune,
        )
    return _shown(report, as_json=as_json)


def _stop_event(*, quiet: bool = False) -> Event:
    """The stop of a command that has failed when it is asked to."""

    def on_stop(signal: str) -> None:
        if not quiet:
            log.info("stop.requested", signal=signal)
        write_termination_message(f"stopped by {signal} before the work was done; nothing needs undoing")

    return stop_event(EXIT_FAILED, on_stop)


def _loaded(command: type[Command], *, quiet: bool = False) -> Command:
    """Read the settings, say what looks misspelt, and log from now on as they tell."""
    for variable, meant in near_misses(environment()):
        log.warning("settings.near_miss", variable=variable, meant=meant)
    settings = load(command)
    if not quiet:
        console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stdout.isatty())
        configure_logs(level=settings.log_level, console=console)
        log.info("settings.loaded", version=lifecycle.__version__, **changed(settings))
    return settings


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        write_termination_message(message)
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lifecycle",
        description=lifecycle.__doc__,
        epilog=_settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tailscale-lifecycle {lifecycle.__version__}")
    _add_dry_run(parser, default=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, package in (("cleanup", cleanup), ("dns-watch", dns_watch), ("prune", prune)):
        command = commands.add_parser(name, help=package.__doc__, description=package.__doc__)
        # Not set again by a command that was given without it.
        _add_dry_run(command, default=argparse.SUPPRESS)
        if package is dns_watch:
            command.add_argument(
                "--once", action="store_true", help="wait for the node, put the record right once, and exit"
            )
        if package is prune:
            command.add_argument("--name", help="take this one service down at once, whatever its state")
            command.add_argument("--yes", action="store_true", help="act; without it the plan is shown")
    return parser


def _add_dry_run(parser: argparse.ArgumentParser, *, default: object) -> None:
    parser.add_argument(
        "--dry-run", action="store_true", default=default, help="read everything, write nothing, show the plan"
    )
    parser.add_argument(
        "--output",
        choices=("text", "json"),
        default="text" if default is False else default,
        help="how --dry-run shows the plan (default: text)",
    )


def arguments_of(arguments: Sequence[str]) -> argparse.Namespace:
    """Read a command line; one that makes no sense ends the process with status 2 and says why."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if not options.dry_run and options.command is None:
        parser.error("say what to do: cleanup, dns-watch, prune, or --dry-run")
    if options.command == "prune" and options.dry_run and options.yes:
        parser.error("--yes acts, and --dry-run does not: give one of them")
    if options.output != "text" and not options.dry_run and (options.command != "prune" or options.yes):
        parser.error("--output goes with --dry-run")
    return options


def _settings_help() -> str:
    """Every setting, its default and what it means, grouped by who reads it."""
    shared = command_variables(Settings)
    groups = [("settings of all commands", shared)]
    groups += [
        (f"settings of {name} alone", {k: v for k, v in command_variables(command).items() if k not in shared})
        for name, command in COMMANDS.items()
    ]
    lines = ["settings come from the environment, or from .env in the working directory"]
    for title, variables in groups:
        lines += ["", f"{title}:"]
        for name, field in variables.items():
            default = default_text(field)
            lines.append(f"  {name}" + (f" (default: {default})" if default else ""))
            lines += textwrap.wrap(field.description or "", 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
