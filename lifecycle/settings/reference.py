"""Format settings as text, for --help and for the log."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from lifecycle.domain.proxy import Proxy
from lifecycle.settings.models import COMMANDS, SECRETS, Settings, command_variables


def default_text(field: FieldInfo) -> str:
    """Return a setting's default as written in a manifest; "" if it has none."""
    return "" if field.is_required() else _value_text(field.get_default())


def _value_text(value: Any) -> str:
    """Return a setting's value as written in a manifest, without a proxy's credentials; "" for None."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case timedelta():
            return _duration_text(value)
        case tuple() | frozenset():
            return ",".join(sorted(map(str, value)))
        case SecretStr():
            # A secret with a scheme is the URL of a proxy. No other secret has a scheme.
            secret = value.get_secret_value()
            return Proxy(secret, setting="").address if "://" in secret else str(value)
        case _:
            return str(value)


def _duration_text(value: timedelta) -> str:
    seconds = int(value.total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def groups() -> Iterator[tuple[str | None, dict[str, FieldInfo]]]:
    """Yield None with the settings of all commands, then each command with those that no command before it has."""
    known = command_variables(Settings)
    yield None, known
    for name, command in COMMANDS.items():
        added = {variable: field for variable, field in command_variables(command).items() if variable not in known}
        known = known | added
        if added:
            yield name, added


def help_text() -> str:
    """Return the part of --help that lists the settings."""
    lines = ["settings come from the environment, or from .env in the working directory"]
    for command, variables in groups():
        lines += ["", f"further settings of {command}:" if command else "settings of all commands:"]
        for name, field in variables.items():
            default = default_text(field)
            lines.append(f"  {name}" + (f" (default: {default})" if default else ""))
            lines += textwrap.wrap(field.description or "", 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def non_default_settings(settings: Settings) -> dict[str, Any]:
    """Return the settings that differ from their defaults, without secrets, for the log."""
    values: dict[str, Any] = {}
    for name, field in command_variables(type(settings)).items():
        value = getattr(settings, name.lower())
        if name in SECRETS or value == field.get_default():
            continue
        match value:
            case timedelta():
                values[f"{name.lower()}_s"] = value.total_seconds()
            case int():
                values[name.lower()] = value
            case _:
                values[name.lower()] = _value_text(value)
    return values
