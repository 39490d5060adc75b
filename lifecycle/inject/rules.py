"""The label and annotations that request the containers, their syntax, and the reasons why a workload is refused.

`scripts/generate` generates the admission policies from the same patterns and messages.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lifecycle.domain.ownership import is_in_domain
from lifecycle.inject.template import (
    CONTAINERS,
    DEFAULTS,
    KEY_VOLUME,
    PORTS,
    PROJECT,
    VOLUMES,
    template,
)
from lifecycle.settings.models import InjectSettings

LABEL = f"{PROJECT}/inject"
HOSTNAME = f"{PROJECT}/hostname"
STATE_SECRET = f"{PROJECT}/state-secret"
TAILSCALE_ARGS = f"{PROJECT}/tailscale-args"
INIT_CONTAINERS = f"{PROJECT}/init-containers"
MAX_HOSTNAME_LENGTH = 63

REFERENCES = ("POD_NAME", "POD_NAMESPACE", "NODE_NAME")
"""Variables that the hostname and the name of the state Secret can refer to."""

FALSE_VALUES = ("", "0", "f", "false", "n", "no", "off")
"""The values of a setting that mean false, in lower case. Source: Pydantic's type bool. An empty value means unset."""

_REFERENCE = rf"\$\(({'|'.join(REFERENCES)})\)"

# One part of a hostname, between dots: letters, digits and references, with hyphens between them.
_HOSTNAME_PART = rf"([a-z0-9]|{_REFERENCE})((-|[a-z0-9]|{_REFERENCE})*([a-z0-9]|{_REFERENCE}))?"

_DNS_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_DNS_NAME = rf"(\*|(\*\.)?{_DNS_LABEL}(\.{_DNS_LABEL})*)"


@dataclass(frozen=True, slots=True)
class Annotation:
    """An annotation of the pod template.

    Attributes:
        pattern: a regular expression for the whole value, in a syntax that Python and RE2 (in CEL) share.
        valid_values: a description of the valid values, for messages.
        setting: the variable of cleanup and dns-watch that gets the value; None if no variable gets it.
    """

    pattern: str
    valid_values: str
    setting: str | None = None


_DNS_NAMES = rf"{_DNS_NAME}(,{_DNS_NAME})*"
_NAME_WITH_REFERENCES = rf"{_HOSTNAME_PART}(\.{_HOSTNAME_PART})*"

ANNOTATIONS = {
    HOSTNAME: Annotation(
        _NAME_WITH_REFERENCES,
        'lower-case letters and digits, with hyphens and dots between them, such as "wiki"; $(POD_NAME), '
        "$(POD_NAMESPACE) and $(NODE_NAME) are replaced",
    ),
    f"{PROJECT}/dns-aliases": Annotation(_DNS_NAMES, "names separated by commas, such as docs,*.wiki", "DNS_ALIASES"),
    f"{PROJECT}/dns-shared-names": Annotation(
        _DNS_NAMES, "names separated by commas, such as *.apps,ingress", "DNS_SHARED_NAMES"
    ),
    f"{PROJECT}/tags": Annotation(
        r"tag:[a-z0-9._-]+(,tag:[a-z0-9._-]+)*",
        "tags separated by commas, such as tag:web,tag:prod",
        "AUTHKEY_TAGS",
    ),
    STATE_SECRET: Annotation(
        _NAME_WITH_REFERENCES, "the name of a Secret; $(POD_NAME), $(POD_NAMESPACE) and $(NODE_NAME) are replaced"
    ),
    f"{PROJECT}/self-heal": Annotation("true|false", '"true" or "false"', "SELF_HEAL"),
    f"{PROJECT}/log-level": Annotation("debug|info|warning|error", "debug, info, warning or error", "LOG_LEVEL"),
    TAILSCALE_ARGS: Annotation(
        # The container splits the flags at each space of Unicode. RESERVED_ARGS knows only the spaces of ASCII.
        r"[ -~]*",
        'flags of `tailscale up` in ASCII, such as "--advertise-routes=10.0.0.0/24"',
    ),
    INIT_CONTAINERS: Annotation(
        "before|after", '"after" (the pod\'s own init containers start after the VPN is up) or "before"'
    ),
}

RESERVED_ARGS = r"(^|\s)--?(auth-?key|hostname|login-server)(=|\s|$)"
"""Flags that the annotation TAILSCALE_ARGS must not contain, because the containers set them."""

REFUSALS = {
    "label": f'The label {LABEL} is "{{value}}". Set it to "true" or "false", in quotes.',
    "unknown": f"{{value}} is not known. The annotations are {', '.join(ANNOTATIONS)}; the label is {LABEL}.",
    "label-place": f"The label {LABEL} is set outside of the pod template. Move it to the pod template, from which "
    "pods get their labels.",
    "hostname-missing": f"The annotation {HOSTNAME} is missing. Set it in the pod template to the workload's name, "
    'such as "wiki" for wiki.{domain}.',
    "value": 'The annotation {name} is "{value}". It must be {valid}.',
    "hostname-length": f"The annotation {HOSTNAME} gives the hostname {{value}}, which is longer than "
    f"{MAX_HOSTNAME_LENGTH} characters. Choose a shorter hostname.",
    "hostname-domain": f'The annotation {HOSTNAME} is "{{value}}", which is outside the domain {{domain}}. Use a name '
    "without dots, or a name that ends in .{domain}.",
    "args": f'The annotation {TAILSCALE_ARGS} is "{{value}}". Remove --login-server, --hostname and --auth-key. '
    f"Their values come from the setting LOGIN_SERVER, the annotation {HOSTNAME} and the key that cleanup creates.",
    "host-network": "The pod uses hostNetwork, so tailscale would change the routes of the cluster node. Remove "
    f"hostNetwork, or the label {LABEL}.",
    "container": 'The pod already has a container named "{value}". Rename this container. If it is your '
    f"own tailscale container, remove the label {LABEL} and use deploy/components/lifecycle.",
    "partial": f"The pod has only a part of the containers and volumes of {PROJECT}: {{value}}. Remove "
    "these from the manifest. The injection adds all of them.",
    "port": "The container {name} declares the port {value}, which tailscale (9002) or dns-watch (9003) uses. Choose "
    "another port.",
    "replicas": "{value} pods would share one hostname. Use one replica, or a StatefulSet with $(POD_NAME) in the "
    f"annotation {HOSTNAME}.",
    "state-shared": f"{{value}} pods would share one state Secret. Use $(POD_NAME) in the annotation "
    f"{STATE_SECRET}, too.",
    "daemon-set": f"A DaemonSet has one pod on each cluster node. Use $(NODE_NAME) in the annotation {HOSTNAME}, and "
    f"in {STATE_SECRET} if it is set.",
    "pod-name": f"The annotation {HOSTNAME} contains $(POD_NAME), but each new pod of this workload has a new name. "
    "Remove $(POD_NAME), or use a StatefulSet, whose pods keep their names.",
}
"""The message of each refusal. A name in braces is replaced by a value."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One object with a pod template, such as a Deployment.

    Attributes:
        manifest: the object as values.
        pod_count: how many pods of the workload run at the same time; for a DaemonSet, how many on each cluster node.
        labels_outside: the labels of the object itself, and of the Jobs of a CronJob.
        labels: the labels of its pods.
        annotations: the annotations of its pods.
        spec: the spec of the pod template.
    """

    kind: str
    name: str
    manifest: Mapping[str, Any]
    pod_count: int
    labels_outside: Mapping[str, Any]
    labels: Mapping[str, Any]
    annotations: Mapping[str, Any]
    spec: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def requests_injection(self) -> bool:
        """Whether the label requests that the containers are added."""
        return self.labels.get(LABEL) == "true"

    @property
    def container_names(self) -> list[str]:
        """The names of all containers and init containers."""
        return [
            container.get("name", "")
            for group in ("initContainers", "containers")
            for container in self.spec.get(group) or []
        ]

    @property
    def reserved_volumes(self) -> list[str]:
        """The pod's volumes that have the name of an added volume."""
        return [volume["name"] for volume in self.spec.get("volumes") or [] if volume.get("name") in VOLUMES]

    @property
    def is_injected(self) -> bool:
        """Whether the pod already contains the added containers."""
        return KEY_VOLUME in self.reserved_volumes and set(CONTAINERS) <= set(self.container_names)


def refusals(workload: Workload, domain: str) -> Iterator[str]:
    """Yield each reason why the containers cannot be added; nothing if they can be added."""
    yield from _name_refusals(workload)
    if not workload.requests_injection:
        return
    yield from _annotation_refusals(workload, domain)
    yield from _pod_refusals(workload)
    yield from _count_refusals(workload)


def _name_refusals(workload: Workload) -> Iterator[str]:
    if LABEL in workload.labels_outside and LABEL not in workload.labels:
        yield _message("label-place")
    value = workload.labels.get(LABEL, "false")
    if value not in ("true", "false"):
        yield _message("label", value=_as_written(value))
    for place, names, known in (
        ("label", workload.labels, (LABEL,)),
        ("annotation", workload.annotations, ANNOTATIONS),
    ):
        for name in map(str, names):
            if name.startswith(f"{PROJECT}/") and name not in known:
                near = difflib.get_close_matches(name, (*ANNOTATIONS, LABEL), n=1)
                hint = f" (did you mean {near[0]}?)" if near and near[0] != name else ""
                yield _message("unknown", value=f"The {place} {name}{hint}")


def _annotation_refusals(workload: Workload, domain: str) -> Iterator[str]:
    annotations = workload.annotations
    for name, annotation in ANNOTATIONS.items():
        value = annotations.get(name)
        if value is not None and not isinstance(value, str):
            yield _message("value", name=name, value=_as_written(value), valid="a string, in quotes")
        elif value is not None and not re.fullmatch(annotation.pattern, value):
            yield _message("value", name=name, value=value, valid=annotation.valid_values)
    hostname = annotations.get(HOSTNAME)
    if hostname is None:
        yield _message("hostname-missing", domain=domain)
    elif isinstance(hostname, str):
        if "." in hostname and not is_in_domain(hostname, domain):
            yield _message("hostname-domain", value=hostname, domain=domain)
        # References such as $(POD_NAME) are not counted, because their values are known only in the pod, where cleanup
        # checks the length.
        elif len(re.sub(_REFERENCE, "", full_hostname(hostname, domain))) > MAX_HOSTNAME_LENGTH:
            yield _message("hostname-length", value=full_hostname(hostname, domain))
    args = annotations.get(TAILSCALE_ARGS, "")
    if isinstance(args, str) and re.search(RESERVED_ARGS, args):
        yield _message("args", value=args)


def _pod_refusals(workload: Workload) -> Iterator[str]:
    if workload.spec.get("hostNetwork"):
        yield _message("host-network")
    reserved = [name for name in CONTAINERS if name in workload.container_names]
    if workload.reserved_volumes and not workload.is_injected:
        yield _message("partial", value=", ".join([*workload.reserved_volumes, *reserved]))
    elif not workload.is_injected:
        for name in reserved:
            yield _message("container", value=name)
    for container in [*(workload.spec.get("initContainers") or []), *(workload.spec.get("containers") or [])]:
        if container.get("name") in CONTAINERS:
            continue
        for port in container.get("ports") or []:
            if port.get("containerPort") in PORTS:
                yield _message("port", name=container.get("name"), value=port["containerPort"])


def _count_refusals(workload: Workload) -> Iterator[str]:
    hostname, secret = (str(workload.annotations.get(name, "")) for name in (HOSTNAME, STATE_SECRET))
    if workload.kind == "DaemonSet":
        if "$(NODE_NAME)" not in hostname or (secret and "$(NODE_NAME)" not in secret):
            yield _message("daemon-set")
    elif "$(POD_NAME)" in hostname and workload.kind not in ("StatefulSet", "Pod"):
        yield _message("pod-name")
    elif workload.pod_count > 1:
        if "$(POD_NAME)" not in hostname:
            yield _message("replicas", value=workload.pod_count)
        elif secret and "$(POD_NAME)" not in secret:
            yield _message("state-shared", value=workload.pod_count)


def _as_written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _message(refusal: str, **values: Any) -> str:
    return REFUSALS[refusal].format(**values)


def full_hostname(hostname: str, domain: str) -> str:
    """Return the hostname of the node: the hostname of the annotation, followed by the domain if it has no dots."""
    return hostname if "." in hostname else f"{hostname}.{domain}"


def placeholder_values(workload: Workload, settings: InjectSettings, shared: Mapping[str, str]) -> dict[str, Any]:
    """Return the value of each placeholder in containers.yaml for a workload.

    Args:
        shared: the variables of cleanup and dns-watch that all workloads share.
    """
    annotations = workload.annotations
    hostname = full_hostname(annotations[HOSTNAME], settings.domain_name)
    secret: str = annotations.get(STATE_SECRET, "")
    args: str = annotations.get(TAILSCALE_ARGS, "").strip(" ")
    uses_exec = shared.get("HEADSCALE_ACCESS") == "exec"
    # With exec, no API key is needed. With HEADSCALE_API_KEY_SECRET, the key is read from this Secret, not from a file.
    needs_kubernetes_api = uses_exec or bool(shared.get("HEADSCALE_API_KEY_SECRET"))
    variables = {
        name: value for name, value in DEFAULTS.items() if name != "HEADSCALE_API_KEY_FILE" or not needs_kubernetes_api
    }
    variables |= shared
    variables |= {
        annotation.setting: annotations[name]
        for name, annotation in ANNOTATIONS.items()
        if annotation.setting and annotations.get(name)
    }
    variables["TS_HOSTNAME"] = hostname
    if secret:
        variables |= {"NODE_POLICY": "keep", "TS_KUBE_SECRET": secret}
    token = [template()["token-mount"]]
    writes_events = variables.get("KUBERNETES_EVENTS", "").lower() not in FALSE_VALUES
    needs_token = needs_kubernetes_api or writes_events
    return {
        "hostname": hostname,
        "tailscale_args": f"--login-server={settings.login_server} {args}".rstrip(),
        "state_secret": secret,
        # An empty value counts as unset.
        "settings": [{"name": name, "value": value} for name, value in sorted(variables.items()) if value],
        "node_name": [template()["node-name"]] if "$(NODE_NAME)" in f"{hostname} {secret}" else [],
        # cleanup reads the state Secret.
        "cleanup_token": token if needs_token or secret else [],
        "dns_watch_token": token if needs_token else [],
        "lifecycle_image": settings.lifecycle_image,
        "tailscale_image": settings.tailscale_image,
    }
