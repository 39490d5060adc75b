"""Fill in the placeholders of containers.yaml for one workload."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from lifecycle.settings.models import SECRET_FOLDER

PROJECT = "tailscale-lifecycle"
"""The project's name, with which the names of the label, annotations and volumes begin."""

CONTAINERS = ("cleanup", "tailscale", "dns-watch")
"""The containers that are added, in the order in which they start."""

PORTS = (9002, 9003)
"""The ports of the pod on which tailscale and dns-watch serve their state."""

KEY_VOLUME = f"{PROJECT}-auth"
"""The volume with the key file, which every pod with the containers has."""

DEFAULTS = {
    "HEADSCALE_API_KEY_FILE": str(SECRET_FOLDER / "HEADSCALE_API_KEY"),
    "CLOUDFLARE_API_TOKEN_FILE": str(SECRET_FOLDER / "CLOUDFLARE_API_TOKEN"),
    "SELF_HEAL": "true",
}
"""Settings of cleanup and dns-watch that differ from the program's own defaults."""

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")

Json = Any


@cache
def template() -> dict[str, Json]:
    """Return the content of containers.yaml. The caller must not change it."""
    text = files(__package__).joinpath("containers.yaml").read_text("utf-8")
    content: dict[str, Json] = yaml.safe_load(text)
    return content


def added_containers() -> list[Json]:
    """Return cleanup and the two native sidecars with placeholders, in the order in which they start."""
    parts = template()
    sidecar = {"restartPolicy": "Always"}
    return [parts["cleanup"], added_tailscale() | sidecar, parts["dns-watch"] | sidecar]


def added_tailscale() -> dict[str, Json]:
    """Return the tailscale container with placeholders, for a pod that has none."""
    required_fields, other_fields = template()["tailscale"], template()["added-tailscale"]
    lists = {name: [*other_fields[name], *required_fields[name]] for name in ("env", "volumeMounts")}
    context = {"securityContext": other_fields["securityContext"] | required_fields["securityContext"]}
    container: dict[str, Json] = required_fields | other_fields | lists | context
    return container


def added_volumes() -> list[Json]:
    """Return the volumes of the added containers."""
    return [*template()["volumes"], *template()["added-tailscale-volumes"]]


VOLUMES = tuple(volume["name"] for volume in added_volumes())
"""The names of the added volumes."""


def filled_containers(values: Mapping[str, Json]) -> list[Json]:
    """Return the containers of one workload, with the values of the placeholders."""
    return [_fill(container, values) for container in added_containers()]


def _fill(part: Json, values: Mapping[str, Json]) -> Json:
    match part:
        case dict():
            return {key: _fill(value, values) for key, value in part.items()}
        case list():
            filled_items: list[Json] = []
            for item in part:
                name = placeholder_name(item)
                if name and isinstance(values[name], list):
                    filled_items += values[name]
                else:
                    filled_items.append(_fill(item, values))
            return filled_items
        case str():
            name = placeholder_name(part)
            return values[name] if name else part
        case _:
            return part


def placeholder_name(part: Json) -> str | None:
    """Return the name in "${name}", or None for anything else."""
    match = _PLACEHOLDER.fullmatch(part) if isinstance(part, str) else None
    return match[1] if match else None
