"""Fill in the placeholders of containers.yaml for one workload."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from lifecycle.settings.models import SECRET_FOLDER

DOMAIN = "tailscale-lifecycle"
"""Prefix of the label and annotations, and of the names of volumes."""

CONTAINERS = ("cleanup", "tailscale", "dns-watch")
"""The containers that are added, in the order in which they start."""

PORTS = (9002, 9003)
"""The ports of the pod on which tailscale and dns-watch serve their state."""

KEY_VOLUME = f"{DOMAIN}-auth"
"""The volume with the key file, which every pod with the containers has."""

DEFAULTS = {
    "HEADSCALE_API_KEY_FILE": str(SECRET_FOLDER / "HEADSCALE_API_KEY"),
    "CLOUDFLARE_API_TOKEN_FILE": str(SECRET_FOLDER / "CLOUDFLARE_API_TOKEN"),
    "SELF_HEAL": "true",
}
"""Settings of cleanup and dns-watch that differ from the program's own defaults."""

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")

Json = Any


@dataclass(frozen=True, slots=True)
class TemplateValues:
    """The values that can differ between workloads.

    Attributes:
        hostname: the node's hostname, which can contain references such as $(POD_NAME).
        tailscale_args: arguments of `tailscale up`.
        state_secret: the Secret with tailscale's state; "" = the state ends with the pod.
        settings: the environment variables of cleanup and dns-watch.
        lifecycle_image: image of cleanup and dns-watch.
        tailscale_image: image of tailscale.
    """

    hostname: str
    tailscale_args: str
    state_secret: str
    settings: Mapping[str, str]
    lifecycle_image: str
    tailscale_image: str

    def by_placeholder(self) -> dict[str, Json]:
        """Return the value of each placeholder in containers.yaml."""
        token = [template()["token-mount"]]
        needs_token = needs_kubernetes_api(self.settings) or writes_events(self.settings)
        refers_to_node = "$(NODE_NAME)" in f"{self.hostname} {self.state_secret}"
        return {
            "hostname": self.hostname,
            "tailscale_args": self.tailscale_args,
            "state_secret": self.state_secret,
            "settings": [{"name": name, "value": value} for name, value in self.settings.items()],
            "node_name": [template()["node-name"]] if refers_to_node else [],
            "cleanup_token": token if needs_token or self.state_secret else [],
            "dns_watch_token": token if needs_token else [],
            "lifecycle_image": self.lifecycle_image,
            "tailscale_image": self.tailscale_image,
        }


def needs_kubernetes_api(settings: Mapping[str, str]) -> bool:
    """Return True if cleanup and dns-watch run commands in Headscale's pod, or read the API key from its namespace."""
    return settings.get("HEADSCALE_ACCESS") == "exec" or bool(settings.get("HEADSCALE_API_KEY_SECRET"))


def writes_events(settings: Mapping[str, str]) -> bool:
    """Return True if cleanup and dns-watch may write Events."""
    return settings.get("KUBERNETES_EVENTS", "").lower() not in ("", "false")


@cache
def template() -> dict[str, Json]:
    """Return the content of containers.yaml. The caller must not change it."""
    text = files(__package__).joinpath("containers.yaml").read_text("utf-8")
    content: dict[str, Json] = yaml.safe_load(text)
    return content


def added_containers() -> list[Json]:
    """Return the three containers with placeholders, as native sidecars, in the order in which they start."""
    parts = template()
    sidecar = {"restartPolicy": "Always"}
    return [parts["cleanup"], added_tailscale() | sidecar, parts["dns-watch"] | sidecar]


def added_tailscale() -> dict[str, Json]:
    """Return the tailscale container with placeholders, for a pod that has none."""
    required, added = template()["tailscale"], template()["added-tailscale"]
    lists = {name: [*added[name], *required[name]] for name in ("env", "volumeMounts")}
    context = {"securityContext": added["securityContext"] | required["securityContext"]}
    container: dict[str, Json] = required | added | lists | context
    return container


def added_volumes() -> list[Json]:
    """Return the volumes of the added containers."""
    return [*template()["volumes"], *template()["added-volumes"]]


VOLUMES = tuple(volume["name"] for volume in added_volumes())
"""The names of the added volumes."""


def fill_template(values: TemplateValues) -> tuple[list[Json], list[Json]]:
    """Return the containers and the volumes of one workload."""
    by_placeholder = values.by_placeholder()
    return [_fill(container, by_placeholder) for container in added_containers()], added_volumes()


def _fill(part: Json, values: Mapping[str, Json]) -> Json:
    match part:
        case dict():
            return {key: _fill(value, values) for key, value in part.items()}
        case list():
            filled_items: list[Json] = []
            for item in part:
                reference = placeholder_name(item)
                if reference and isinstance(values[reference], list):
                    filled_items += values[reference]
                else:
                    filled_items.append(_fill(item, values))
            return filled_items
        case str():
            reference = placeholder_name(part)
            return values[reference] if reference else part
        case _:
            return part


def placeholder_name(part: Json) -> str | None:
    """Return the name in "${name}", or None for anything else."""
    match = _PLACEHOLDER.fullmatch(part) if isinstance(part, str) else None
    return match[1] if match else None
