"""Parse the JSON and the errors that the command `headscale` writes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from lifecycle.clients.headscale.errors import AMBIGUOUS_USER_ADVICE, AMBIGUOUS_USER_TEXT, MISSING_OBJECT, UPSTREAM
from lifecycle.clients.headscale.pod import CHECK_SETTINGS, Target
from lifecycle.clients.kubernetes.exec import NO_PROGRAM_TEXT, Output
from lifecycle.clients.response import excerpt
from lifecycle.domain.errors import ApiError, AuthError, NotFoundError, ResponseError, TransientError

PROGRAM: Final = "headscale"


class UsageError(ResponseError):
    """The command `headscale` refused its arguments, because they are those of another release."""


# The exit statuses with which shells and some container runtimes report that the program does not exist.
_NO_PROGRAM = frozenset({126, 127})

# A refusal by the server: its gRPC code, such as "NotFound", and its message. From 0.30 on, refusals have no code.
_REFUSAL = re.compile(r"(?:rpc error: code = (\w+) desc =|unexpected response status:) (.*)", re.DOTALL)

# The codes with which the server can refuse a request because an object is missing.
_NOT_FOUND = frozenset({"NotFound", "Unknown", None})

# The type of the error for a code. Any code that is not listed means that the server is down or has failed.
_KINDS: dict[str | None, type[ApiError]] = {
    **dict.fromkeys(("Unauthenticated", "PermissionDenied"), AuthError),
    **dict.fromkeys(("InvalidArgument", "FailedPrecondition", "Unimplemented", "ResourceExhausted"), ResponseError),
}

# The failures that occur before the command contacts the server: a pattern of the message, the type of the error, and
# the advice. A retry cannot help.
_LOCAL_FAILURES: tuple[tuple[str, type[ResponseError], str], ...] = (
    (r"unknown (shorthand )?(flag|command)|required flag|invalid argument|accepts \d+ arg", UsageError, CHECK_SETTINGS),
    (
        r"(load|read|pars)(e|ing)? (the )?config|config file .*not found|HEADSCALE_CLI_\w+",
        ResponseError,
        (
            "The command does not find the server's configuration. In the environment of Headscale's container, set "
            "HEADSCALE_CONFIG to the path of the configuration. Commands in the container inherit this environment."
        ),
    ),
    (NO_PROGRAM_TEXT, ResponseError, CHECK_SETTINGS),
    (
        "permission denied",
        ResponseError,
        (
            "The container's user has no access to Headscale's socket or configuration. Check unix_socket_permission "
            "in Headscale's configuration and the user of its container."
        ),
    ),
)

_LINE_START = re.compile(r"^(?=\S)", re.MULTILINE)
_SNAKE = re.compile(r"_([a-z])")


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
        why = f": {text}{advice and f'. {advice}'}"
    return kind(f"Headscale: {describe(arguments)} in {target} failed{why}", upstream=UPSTREAM)


def _meaning(text: str) -> tuple[type[ApiError], str]:
    """Return the type of the error, and advice. Either the server refused the request, or the command itself failed."""
    if AMBIGUOUS_USER_TEXT in text:
        return ResponseError, AMBIGUOUS_USER_ADVICE
    if refusal := _REFUSAL.search(text):
        code, message = refusal.groups()
        is_missing = code in _NOT_FOUND and MISSING_OBJECT.search(message)
        return NotFoundError if is_missing else _KINDS.get(code, TransientError), ""
    for pattern, kind, advice in _LOCAL_FAILURES:
        if re.search(pattern, text, re.IGNORECASE):
            return kind, advice
    return TransientError, ""


def malformed_output(arguments: Sequence[str], target: Target | None) -> ResponseError:
    """Return the error for output that cannot be parsed, for example because another program wrote it."""
    return ResponseError(f"Malformed output of {describe(arguments)} in {target}. {CHECK_SETTINGS}", upstream=UPSTREAM)


def last_json(text: str) -> Any:
    """Return the JSON value at the end of the output, with the names of members as in the REST API.

    Log lines can precede the value.

    Raises:
        ValueError: the output does not end with a JSON value that begins at the start of a line.
    """
    decoder = json.JSONDecoder(object_hook=_with_camel_case_names)
    text = text.rstrip()
    for line in _LINE_START.finditer(text):
        with suppress(ValueError, RecursionError):
            value, end = decoder.raw_decode(text, line.start())
            if end == len(text):
                return value
    raise ValueError("no JSON value at the end")


def _with_camel_case_names(members: dict[str, Any]) -> dict[str, Any]:
    """Rename the members of an object: `ip_addresses` becomes `ipAddresses`."""
    return {_SNAKE.sub(lambda match: match[1].upper(), name): value for name, value in members.items()}


def _reason(stderr: bytes) -> str:
    """Return the reason for a failure: the member `error` of a JSON object, or a line of text."""
    text = stderr.decode(errors="replace").strip()
    try:
        text = str(last_json(text)["error"])
    except (ValueError, KeyError, TypeError):
        text = next((line for line in text.splitlines() if line.startswith("Error:")), text.rpartition("\n")[2])
    return excerpt(text)
