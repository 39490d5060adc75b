"""Read the environment once: every value stripped, every problem reported."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from pydantic import ValidationError

from lifecycle.domain.errors import ConfigError
from lifecycle.settings.fields import checked_text
from lifecycle.settings.models import (
    NON_SETTINGS,
    PLACEHOLDERS,
    SECRET_FOLDER,
    Command,
    command_variables,
    every_variable,
)

ENV_FILE = ".env"

# Other programs read these in lower case too; the upper-case name takes precedence.
_ALSO_LOWER_CASE = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})

# Many programs read these, and some have variants, such as NIX_SSL_CERT_FILE, which are not typing errors.
_SHARED_VARIABLES = _ALSO_LOWER_CASE | {"SSL_CERT_FILE", "SSL_CERT_DIR"}

# For this variable alone, empty means something else than unset.
_MAY_BE_EMPTY = "TAILSCALE_INTERFACE"

# Names with at least this similarity (1.0 = equal) are taken for typing errors: one or two wrong letters of ten.
_MIN_SIMILARITY = 0.86

_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S+")


def load(command: type[Command]) -> Command:
    """Read the settings of one command from the environment and from `.env` in the working directory.

    Raises:
        ConfigError: lists every problem by its variable's name, without values.
    """
    # Python's ssl would write the keys of TLS sessions to this file, and fail if it cannot.
    os.environ.pop("SSLKEYLOGFILE", None)
    given, wrong = _checked(command, environment())
    try:
        settings = command.model_validate(given)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_context=False, include_input=False):
            name = str(problem["loc"][0])
            wrong.setdefault(name, _message(problem) + _advice(given.pop(name, ""), given))
            if command_variables(command)[name].is_required():
                given[name] = PLACEHOLDERS[name]
        settings = command.model_validate(given)
    # If a secret's file or the pod's name is invalid, the secret or the hostname is not reported as missing too.
    reported = {name.removesuffix("_FILE") for name in wrong} | wrong.keys()
    if wrong.keys() & {"POD_NAME", "ORDINALS_START"}:
        reported.add("TS_HOSTNAME")
    combined = [problem for problem in settings.problems() if problem.partition(":")[0] not in reported]
    problems = [*(f"{name}: {text}" for name, text in wrong.items()), *combined]
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def _checked(command: type[Command], variables: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the values of the command's variables and, for those with an invalid text, a message; both by name."""
    ignored = set(service_links(variables))
    given: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for name in [*command_variables(command), *NON_SETTINGS]:
        value = variables.get(name, "")
        if name in ignored or (not value and (name != _MAY_BE_EMPTY or name not in variables)):
            continue
        try:
            given[name] = checked_text(value)
        except ValueError as error:
            if name not in NON_SETTINGS:
                wrong[name] = str(error)
    return given, wrong


def environment() -> dict[str, str]:
    """Return the stripped variables of `.env` and the environment, whose value takes precedence unless it is empty.

    Raises:
        ConfigError: `.env` exists and cannot be read.
    """
    variables = _variables_of_file()
    for name, value in os.environ.items():
        text = value.strip()
        if text or name not in variables or name == _MAY_BE_EMPTY:
            variables[name] = text
    for name in _ALSO_LOWER_CASE:
        variables[name] = variables.get(name) or variables.get(name.lower(), "")
    return variables


def _variables_of_file() -> dict[str, str]:
    path = _env_file()
    try:
        from_file = dotenv_values(path) if path else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{ENV_FILE}: cannot be read as UTF-8 text ({type(error).__name__})") from None
    return {name: (value or "").strip() for name, value in from_file.items()}


def settings_to_pass_on(names: Iterable[str]) -> dict[str, str]:
    """Return the text of the settings that `inject` passes to other pods.

    Proxies and certificate authorities are passed on only from `.env`: in the environment, they are those of this
    machine.

    Args:
        names: the settings.

    Raises:
        ConfigError: see `environment`.
    """
    here, from_file = environment(), _variables_of_file()
    given = {name: (from_file if name in _SHARED_VARIABLES else here).get(name, "") for name in names}
    return {name: value for name, value in given.items() if value}


def _env_file() -> Path | None:
    """Return `.env`, or None if it does not exist, is a folder or cannot be reached."""
    path = Path(ENV_FILE)
    with suppress(OSError):
        return path if path.exists() and not path.is_dir() else None
    return None


def service_links(variables: Mapping[str, str]) -> list[str]:
    """Return the settings whose value Kubernetes set for a Service of the same name.

    For a Service named `health`, each pod of the namespace gets HEALTH_PORT=tcp://..., HEALTH_SERVICE_HOST and
    HEALTH_SERVICE_PORT, unless `enableServiceLinks` is false.
    """
    return [
        name
        for name in sorted(every_variable())
        if name.endswith("_PORT") and _SERVICE_LINK.fullmatch(variables.get(name, ""))
        if {f"{name.removesuffix('_PORT')}_SERVICE_{part}" for part in ("HOST", "PORT")} <= variables.keys()
    ]


def variables_read() -> set[str]:
    """Return the names of all variables that any command reads."""
    return every_variable() | NON_SETTINGS | {name.lower() for name in _ALSO_LOWER_CASE}


def near_misses(variables: Iterable[str]) -> list[tuple[str, str]]:
    """Return variables that resemble a setting, each with the setting's name."""
    known = (every_variable() | NON_SETTINGS) - _SHARED_VARIABLES
    return [
        (variable, meant)
        for variable in sorted(set(variables) - variables_read())
        for meant in difflib.get_close_matches(variable.upper(), known, n=1, cutoff=_MIN_SIMILARITY)
    ]


def _advice(value: str, given: Mapping[str, str]) -> str:
    """Return what to do about an invalid value: for a file of the Secret "lifecycle", which key is missing there."""
    path = Path(value)
    if path.parent != SECRET_FOLDER or path.exists():
        return ""
    namespace = given.get("POD_NAMESPACE", "the pod's namespace")
    return f". Create the Secret lifecycle in {namespace}, with the key {path.name}"


def _message(problem: Any) -> str:
    if problem["type"] == "missing":
        return "is required"
    return str(problem["msg"]).removeprefix("Value error, ")
