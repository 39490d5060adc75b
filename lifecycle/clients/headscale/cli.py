"""Parse the JSON and the errors that Headscale's command line writes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from lifecycle.clients.headscale.errors import CHECK_NAMES, UPSTREAM, cli_refusal, is_ambiguous, is_missing
from lifecycle.clients.headscale.pod import CHECK_SETTINGS, Target
from lifecycle.clients.kubernetes.exec import Output
from lifecycle.clients.text import excerpt
from lifecycle.domain.errors import ApiError, AuthError, NotFoundError, ResponseError, TransientError

PROGRAM: Final = "headscale"

# The exit statuses with which shells and some container runtimes report that the program does not exist.
_NO_PROGRAM = frozenset({126, 127})

# gRPC codes in refusals by the server. "" stands for a refusal by Headscale 0.30 or newer, which contains no code.
_NOT_FOUND = frozenset({"NotFound", "Unknown", ""})
_REFUSED_CALLER = frozenset({"Unauthenticated", "PermissionDenied"})
_INVALID_REQUEST = frozenset({"InvalidArgument", "FailedPrecondition", "Unimplemented", "ResourceExhausted"})

# Messages about wrong arguments.
_USAGE = re.compile(
    r"unknown (shorthand )?(flag|command)|required flag|invalid argument|accepts \d+ arg", re.IGNORECASE
)

# Messages about failures that occur before the command line has contacted the server. A retry cannot help.
_NO_CONFIGURATION = re.compile(
    r"(load|read|pars)(e|ing)? (the )?config|config file .*not found|HEADSCALE_CLI_\w+", re.IGNORECASE
)
_NO_PERMISSION = re.compile(r"permission denied", re.IGNORECASE)

_LINE_START = re.compile(r"^(?=[^\s])", re.MULTILINE)


class UsageError(ResponseError):
    """The command line refused its arguments, because they are those of another release."""


def describe(arguments: Sequence[str]) -> str:
    """Return the name of a command for messages. The options are left out, because they can contain secrets."""
    return " ".join([f"`{PROGRAM}", *arguments[:2]]) + "`"


def explain_cli_failure(arguments: Sequence[str], target: Target, output: Output) -> ApiError:
    """Return the error for a failed command, by its exit status and what it wrote."""
    text = _reason(output.stderr)
    kind: type[ApiError] = TransientError
    if output.exit_status in _NO_PROGRAM:
        kind, why = ResponseError, f": there is no such program ({text or output.exit_status}). {CHECK_SETTINGS}"
    elif not text:
        why = (
            f" with exit status {output.exit_status} and gave no reason. Run the command in this container "
            "without `-o json`, which hides the reason."
        )
    else:
        kind, advice = _meaning(text)
        why = f": {text}{advice}"
    return kind(f"Headscale: {describe(arguments)} in {target} failed{why}", upstream=UPSTREAM)


def _meaning(text: str) -> tuple[type[ApiError], str]:
    """Return the type of the error, and advice. Either the server refused the request, or the command line failed."""
    code, message = cli_refusal(text)
    if is_ambiguous(message):
        return ResponseError, f". {CHECK_NAMES}"
    if code is not None:
        return _kind(code, message), ""
    if _USAGE.search(text):
        return UsageError, f". {CHECK_SETTINGS}"
    if _NO_CONFIGURATION.search(text):
        return ResponseError, (
            ". The command does not find the server's configuration. In the environment of Headscale's container, set "
            "HEADSCALE_CONFIG to the path of the configuration. Commands in the container inherit this environment."
        )
    if _NO_PERMISSION.search(text):
        return ResponseError, (
            ". The container's user has no access to Headscale's socket or configuration. Check unix_socket_permission "
            "in Headscale's configuration and the user of its container."
        )
    return TransientError, ""


def _kind(code: str, message: str) -> type[ApiError]:
    """Return the type of the error for a refusal by the server."""
    if code in _NOT_FOUND and is_missing(message):
        return NotFoundError
    if code in _REFUSED_CALLER:
        return AuthError
    # Any other code means that the server is down or has failed.
    return ResponseError if code in _INVALID_REQUEST else TransientError


def malformed_output(arguments: Sequence[str], target: Target | None) -> ResponseError:
    """Return the error for output that is not from Headscale's command line."""
    return ResponseError(f"Malformed output of {describe(arguments)} in {target}. {CHECK_SETTINGS}", upstream=UPSTREAM)


def last_json(text: str) -> Any:
    """Return the JSON value at the end of a text. Log lines can precede the value.

    Raises:
        ValueError: the text does not end with a JSON value that begins at the start of a line.
    """
    decoder = json.JSONDecoder()
    for line in _LINE_START.finditer(text):
        try:
            value, end = decoder.raw_decode(text, line.start())
        except (ValueError, RecursionError):
            continue
        if not text[end:].strip():
            return value
    raise ValueError("no JSON value at the end")


def _reason(stderr: bytes) -> str:
    """Return the reason for a failure: the member `error` of a JSON object, or a line of text."""
    text = stderr.decode(errors="replace").strip()
    try:
        text = str(last_json(text)["error"])
    except (ValueError, KeyError, TypeError):
        text = next((line for line in text.splitlines() if line.startswith("Error:")), text.rpartition("\n")[2])
    return excerpt(text)
