"""Read the settings of a command from the environment, and report all problems together."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dotenv import dotenv_values
from pydantic import ValidationError

from lifecycle.domain.errors import ConfigError
from lifecycle.settings.fields import checked_text
from lifecycle.settings.models import (
    KUBELET_VARIABLES,
    PLACEHOLDERS,
    SECRET_FOLDER,
    Command,
    InjectSettings,
    command_variables,
    every_variable,
    site_variables,
)

ENV_FILE = ".env"

# Like other programs, this program also reads these variables in lower case. The upper-case variable takes precedence.
_ALSO_LOWER_CASE = frozenset({"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"})

# Many programs read these variables and similar ones, so a similar name, such as NIX_SSL_CERT_FILE, is not reported.
_SHARED_VARIABLES = _ALSO_LOWER_CASE | {"SSL_CERT_FILE", "SSL_CERT_DIR"}

# The only variable that may be empty. For all others, an empty value counts as unset.
_MAY_BE_EMPTY = "TAILSCALE_INTERFACE"

# A variable with at least this similarity to a setting (1.0 = equal) is taken for a typing error. At this value, one or
# two letters of ten may be wrong.
_MIN_SIMILARITY = 0.86

_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://\S+")


def load(command: type[Command]) -> Command:
    """Read the settings of one command from the environment and from `.env` in the working directory.

    Raises:
        ConfigError: lists every problem with its variable's name and without its value.
    """
    # If SSLKEYLOGFILE is set, Python's ssl writes the keys of TLS sessions to that file, and fails if it cannot.
    os.environ.pop("SSLKEYLOGFILE", None)
    values, problems = _read_values(command, environment())
    try:
        settings = command.model_validate(values)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_context=False, include_input=False):
            name = str(detail["loc"][0])
            message = "is required" if detail["type"] == "missing" else detail["msg"].removeprefix("Value error, ")
            problems.setdefault(name, message + _advice(values.pop(name, ""), values))
            if command_variables(command)[name].is_required():
                values[name] = PLACEHOLDERS[name]
        # Invalid values are left out or replaced by placeholders, so that `settings.problems()` can check the others.
        settings = command.model_validate(values)
    # Do not report the consequences of a problem: a secret is missing if its file is invalid, and TS_HOSTNAME has no
    # default if the pod's name or ORDINALS_START is invalid.
    reported = {name.removesuffix("_FILE") for name in problems} | problems.keys()
    if problems.keys() & {"POD_NAME", "ORDINALS_START"}:
        reported.add("TS_HOSTNAME")
    lines = [f"{name}: {problem}" for name, problem in problems.items()]
    lines += [problem for problem in settings.problems() if problem.partition(":")[0] not in reported]
    if lines:
        raise ConfigError("\n".join(lines))
    return settings


def _read_values(command: type[Command], variables: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the values of the command's variables, and the problem of each variable with an invalid text."""
    ignored = set(service_links(variables))
    values: dict[str, str] = {}
    problems: dict[str, str] = {}
    for name in [*command_variables(command), *KUBELET_VARIABLES]:
        value = variables.get(name, "")
        if name in ignored or (not value and (name != _MAY_BE_EMPTY or name not in variables)):
            continue
        try:
            values[name] = checked_text(value)
        except ValueError as error:
            if name not in KUBELET_VARIABLES:
                problems[name] = str(error)
    return values, problems


def environment() -> dict[str, str]:
    """Return the variables of `.env` and of the environment, stripped. Raise ConfigError if `.env` cannot be read.

    If both have a variable, the value in the environment is used unless it is empty.
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
    try:
        # The result is empty if the file does not exist, is a folder or cannot be reached.
        from_file = dotenv_values(ENV_FILE)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{ENV_FILE}: cannot be read as UTF-8 text ({type(error).__name__})") from None
    return {name: (value or "").strip() for name, value in from_file.items()}


def settings_to_pass_on(settings: InjectSettings) -> dict[str, str]:
    """Return the settings that `inject` passes on to all pods, as text, by the names of their variables.

    Proxies and certificate authorities are passed on only from `.env`, because those in the environment are for this
    machine.
    """
    variables, from_file = environment(), _variables_of_file()
    values = {name: (from_file if name in _SHARED_VARIABLES else variables).get(name) for name in site_variables()}
    return {name: value for name, value in values.items() if value} | {"DOMAIN_NAME": settings.domain_name}


def service_links(variables: Mapping[str, str]) -> list[str]:
    """Return the names of settings whose variable was set by Kubernetes for a Service, and not by the operator.

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
    return every_variable() | KUBELET_VARIABLES | {name.lower() for name in _ALSO_LOWER_CASE}


def near_misses(variables: Iterable[str]) -> list[tuple[str, str]]:
    """Return the variables whose name may be a typing error, each with the name of the setting that it resembles."""
    known = (every_variable() | KUBELET_VARIABLES) - _SHARED_VARIABLES
    return [
        (variable, setting)
        for variable in sorted(set(variables) - variables_read())
        for setting in difflib.get_close_matches(variable.upper(), known, n=1, cutoff=_MIN_SIMILARITY)
    ]


def _advice(value: str, values: Mapping[str, str]) -> str:
    """Return advice if the value is the path of a file that the Secret "lifecycle" should contain, else ""."""
    path = Path(value)
    try:
        if path.parent != SECRET_FOLDER or path.exists():
            return ""
    except OSError:
        # The folder exists, but cannot be searched.
        return ""
    namespace = values.get("POD_NAMESPACE", "the pod's namespace")
    return f". Create the Secret lifecycle in {namespace}, with the key {path.name}"
