"""Parse the command line, run the command, and return its exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import structlog

import lifecycle
from lifecycle import cleanup, commands, dns_watch, inject, prune, status
from lifecycle.domain.errors import EXIT_FAILED, ConfigError, LifecycleError, ManifestError
from lifecycle.domain.text import printable_json
from lifecycle.runtime.logs import configure_logs, flush_logs
from lifecycle.runtime.output import print_text, standard_stream
from lifecycle.runtime.stop import STOPPED_EARLY, Stop
from lifecycle.runtime.termination import write_termination_message
from lifecycle.settings.load import environment, load, near_misses, service_links
from lifecycle.settings.models import (
    COMMANDS,
    CleanupSettings,
    Command,
    DnsWatchSettings,
    DryRunSettings,
    InjectSettings,
    PruneSettings,
    StatusSettings,
)
from lifecycle.settings.reference import help_text, non_default_settings

log = structlog.get_logger()

_PACKAGES = {"cleanup": cleanup, "dns-watch": dns_watch, "prune": prune, "status": status, "inject": inject}

# Before the process ends, it waits at most this time until the log is written. The reader of a pipe can be slow.
_FLUSH_S = 0.5


def run(options: argparse.Namespace) -> int:
    """Run one command line, and return its exit status, as described in `domain.errors.EXIT_STATUSES`."""
    configure_logs(console=_is_terminal(), to_stderr=options.is_dry_run or options.command == "inject")
    is_watching = options.command == "dns-watch" and not options.is_dry_run and not options.once

    def report_stop(signal: str) -> None:
        if not options.is_dry_run:
            log.info("stop.requested", signal=signal)
        if not is_watching:
            write_termination_message(STOPPED_EARLY.format(signal))

    stop = Stop(0 if is_watching else EXIT_FAILED, report_stop)
    try:
        return _run_command(options, stop)
    except LifecycleError as error:
        _log_failure(error)
        write_termination_message(str(error))
        return error.exit_status
    except Exception as error:
        log.exception("command.crashed", error_type=type(error).__name__)
        write_termination_message(f"This is a bug ({type(error).__name__}); the log has the traceback.")
        return EXIT_FAILED
    finally:
        stop.finish()
        flush_logs(_FLUSH_S)


def _run_command(options: argparse.Namespace, stop: Stop) -> int:
    match options.command:
        case "status":
            return _show_status(options)
        case "inject":
            return _show_manifests(options)
        case _ if options.is_dry_run:
            return _show_plan(options)
        case "cleanup":
            commands.cleanup(_load_settings(CleanupSettings), stop)
        case "dns-watch":
            commands.dns_watch(_load_settings(DnsWatchSettings), stop, only_once=options.once)
        case "prune":
            commands.prune(_load_settings(PruneSettings), stop, name=options.name)
    return 0


def _show_manifests(options: argparse.Namespace) -> int:
    """Write the manifests with the added containers to standard output, and return the exit status."""
    settings = _load_settings(InjectSettings, is_logged=False)
    is_printed = _print(commands.inject(settings, options.files, options.state_secret), for_programs=True)
    return 0 if is_printed else EXIT_FAILED


def _show_plan(options: argparse.Namespace) -> int:
    """Write what the command would change to standard output, and return the exit status."""
    from lifecycle import dry_run, report  # noqa: PLC0415 - only dry runs need these imports

    settings = _load_settings(COMMANDS.get(options.command, DryRunSettings), is_logged=False)
    plan = dry_run.plan_commands(settings, name=options.name if options.command == "prune" else None)
    if not _print_report(options, report.to_json_values(plan), report.to_text(plan, colors=_is_terminal())):
        return EXIT_FAILED
    if not plan.problems:
        return 0
    write_termination_message("\n".join(plan.problems))
    return EXIT_FAILED


def _show_status(options: argparse.Namespace) -> int:
    """Write the state of every workload to standard output, and return the exit status."""
    from lifecycle import dry_run  # noqa: PLC0415 - only status needs these imports
    from lifecycle.status import report  # noqa: PLC0415

    document = dry_run.status(_load_settings(StatusSettings, is_logged=False), redact=options.redact)
    is_printed = _print_report(options, document, report.to_text(document))
    return EXIT_FAILED if report.needs_action(document) or not is_printed else 0


def _print_report(options: argparse.Namespace, values: Any, text: str) -> bool:
    """Write a report to standard output, as JSON or as text. Return False as `_print` does."""
    if options.output == "json":
        return _print(f"{printable_json(values, indent=2)}\n", for_programs=True)
    return _print(text, for_programs=False)


def _print(text: str, *, for_programs: bool) -> bool:
    """Write a result to standard output. Return False if the reader of a pipe has closed it, as with `| head`.

    Args:
        for_programs: the text is JSON or YAML, which is UTF-8 in every locale.
    """
    # The waiting log lines are written first, so that on a terminal warnings appear before the result.
    flush_logs(_FLUSH_S)
    try:
        print_text(text, encoding="utf-8" if for_programs else None)
    except BrokenPipeError:
        return False
    except OSError as error:
        raise LifecycleError(f"Standard output cannot be written ({error.strerror or error}).") from error
    return True


def _log_failure(error: LifecycleError) -> None:
    if isinstance(error, ConfigError | ManifestError):
        event = "settings.invalid" if isinstance(error, ConfigError) else "manifest.refused"
        for problem in str(error).splitlines():
            log.error(event, error=problem)
    else:
        log.error("command.failed", error=str(error), error_type=type(error).__name__)


def _is_terminal() -> bool:
    stream = standard_stream("stdout")
    return stream is not None and stream.isatty()


def _load_settings(command: type[Command], *, is_logged: bool = True) -> Command:
    """Load the settings, and warn about variables that are probably misspelt.

    If the command writes a log (`is_logged`), LOG_LEVEL and LOG_FORMAT take effect, and the settings are logged.
    """
    variables = environment()
    for variable, setting in near_misses(variables):
        log.warning("settings.near_miss", variable=variable, similar_to=setting)
    for variable in service_links(variables):
        log.warning(
            "settings.service_link_ignored",
            variable=variable,
            advice="Kubernetes sets this variable for a Service. Set enableServiceLinks: false in the pod's spec.",
        )
    settings = load(command)
    if is_logged:
        console = settings.log_format == "console" or (settings.log_format == "auto" and _is_terminal())
        configure_logs(level=settings.log_level, console=console)
        log.info("settings.loaded", version=lifecycle.__version__, **non_default_settings(settings))
    return settings


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        """Return the help text. Only the help of the program lists the settings, not the help of a single command."""
        # The parser of a command has a name of two words, such as "lifecycle cleanup".
        if " " not in self.prog:
            self.epilog = help_text()
        return super().format_help()

    def error(self, message: str) -> NoReturn:
        write_termination_message(message)
        super().error(message)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write a message. A full disk or a closed pipe must not cause a traceback."""
        # A standard stream, and also `file`, is None if the stream was closed when the process started.
        is_output = file is standard_stream("stdout") and file is not standard_stream("stderr")
        try:
            print_text(message, "stdout" if is_output else "stderr")
        except OSError:
            if is_output:
                sys.exit(EXIT_FAILED)


def _parser() -> argparse.ArgumentParser:
    # These options have no default here. In `lifecycle --dry-run cleanup`, the default of the command's parser would
    # overwrite the option that the program's parser has read. `parse_arguments` sets the defaults.
    dry_run = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    dry_run.add_argument("--dry-run", action="store_true", help="read everything, write nothing, print the plan")
    output = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    output.add_argument("--output", choices=("text", "json"), help="format of the report")
    options_of = {inject: [], status: [output]}

    parser = _Parser(
        prog="lifecycle",
        description=lifecycle.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[dry_run, output],
    )
    parser.add_argument("--version", action="version", version=f"tailscale-lifecycle {lifecycle.__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    parsers = {
        name: subparsers.add_parser(
            name,
            help=package.__doc__,
            description=package.__doc__,
            parents=options_of.get(package, [dry_run, output]),
        )
        for name, package in _PACKAGES.items()
    }
    add = parsers["dns-watch"].add_argument
    add("--once", action="store_true", help="wait for the node, update the record once, and exit")
    add = parsers["prune"].add_argument
    add("--name", help="select only this workload, even if it runs")
    add("--yes", action="store_true", help="delete the nodes and records; without --yes, only print the plan")
    add = parsers["status"].add_argument
    add("--redact", action="store_true", help="shorten names and addresses")
    add = parsers["inject"].add_argument
    add("files", nargs="*", metavar="FILE", help="manifests; none or - for standard input")
    add("--state-secret", action="store_true", help="also write the Secret, Role and RoleBinding for tailscale's state")
    return parser


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line; exit with status 2 if it is invalid.

    The option `is_dry_run` is also true for `status`, and for `prune` without --yes.
    """
    parser = _parser()
    options = parser.parse_args(arguments, argparse.Namespace(dry_run=False, output="text"))
    if not options.dry_run and options.command is None:
        parser.error("one of these is required: cleanup, dns-watch, prune, status, inject, --dry-run")
    if options.command == "inject" and options.dry_run:
        parser.error("inject writes to standard output only; omit --dry-run")
    if options.command == "prune" and options.dry_run and options.yes:
        parser.error("--yes and --dry-run exclude each other")
    if options.command == "status" and options.dry_run:
        parser.error("status changes nothing; omit --dry-run")
    is_only_shown = options.command == "status" or (options.command == "prune" and not options.yes)
    options.is_dry_run = options.dry_run or is_only_shown
    if options.output != "text" and not options.is_dry_run:
        parser.error("--output requires --dry-run")
    return options
