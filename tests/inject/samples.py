"""Read the workloads of workloads.yaml, add the containers to them, and compare the resulting pods."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import yaml

from lifecycle.inject.manifests import inject
from lifecycle.inject.rules import STATE_SECRET
from lifecycle.inject.template import CONTAINERS
from lifecycle.settings.models import DryRunSettings, InjectSettings, command_variables
from tests.inject.labelled_workloads import template_of
from tests.pod.rendering import parse

Document = dict[str, Any]

SETTINGS = {"DOMAIN_NAME": "example.com", "HEADSCALE_USER": "services", "HEADSCALE_URL": "http://10.96.0.20:8080"}
LOGIN_SERVER = "https://headscale.example.com"
INJECT_SETTINGS = InjectSettings.model_validate({"DOMAIN_NAME": "example.com", "LOGIN_SERVER": LOGIN_SERVER})

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPONENTS = DEPLOY / "components/lifecycle"


@cache
def _workloads() -> tuple[Document, ...]:
    return tuple(parse(Path(__file__).with_name("workloads.yaml").read_text()))


def workloads() -> dict[str, Document]:
    """Return the workloads of workloads.yaml by name."""
    return {document["metadata"]["name"]: deepcopy(document) for document in _workloads()}


NAMES = sorted(workloads())


def injected(
    document: Document, shared: Mapping[str, str] = SETTINGS, settings: InjectSettings = INJECT_SETTINGS
) -> Document:
    """Return a manifest to which `lifecycle inject` has added the containers."""
    result: Document = json.loads(inject([json.dumps(document)], settings, shared))
    return result


def inject_text(text: str, shared: Mapping[str, str] = SETTINGS, *, with_state_secrets: bool = False) -> str:
    """Add the containers to the workloads in the content of one file."""
    return inject([text], INJECT_SETTINGS, shared, with_state_secrets=with_state_secrets)


def write_kustomization(
    folder: Path, documents: Sequence[Document], variant: str, literals: Mapping[str, str] | None = None
) -> Path:
    """Write a kustomization of workloads with a variant of the Kustomize component, and return its folder.

    Args:
        folder: an empty folder, which is created if it does not exist.
        variant: the name of the folder of this variant.
        literals: the content of the ConfigMap `lifecycle`, which has the settings; None = no ConfigMap is generated.
    """
    folder.mkdir(exist_ok=True)
    (folder / "workloads.yaml").write_text("---\n".join(json.dumps(document) + "\n" for document in documents))
    (folder / "components").symlink_to(COMPONENTS)
    kustomization: Document = {"resources": ["workloads.yaml"], "components": [f"components/{variant}"]}
    if literals is not None:
        settings = [f"{name}={value}" for name, value in literals.items()]
        kustomization["configMapGenerator"] = [{"name": "lifecycle", "literals": settings}]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def comparable(spec: Document, config: dict[str, str] | None = None) -> Document:
    """Return a pod's spec in a form in which equal pods compare equal.

    Variables from a ConfigMap get their values, as the kubelet does it, or are removed if no program reads them.
    Variables, mounts and volumes are sorted, because their order has no effect. The order of containers is kept.

    Args:
        spec: the spec of a pod or pod template.
        config: the content of the ConfigMap `lifecycle`.
    """
    spec = deepcopy(spec)
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        if container["name"] in CONTAINERS:
            container["env"] = _variables(container, config or {})
            container.pop("envFrom", None)
        for name, key in (("env", "name"), ("volumeMounts", "mountPath")):
            if container.get(name):
                container[name] = sorted(container[name], key=itemgetter(key))
            else:
                container.pop(name, None)
    spec["volumes"] = sorted(spec.get("volumes") or [], key=lambda volume: str(volume["name"]))
    return spec


def _variables(container: Document, config: dict[str, str]) -> list[Document]:
    known = command_variables(DryRunSettings)
    variables: dict[str, Document] = {}
    for source in container.get("envFrom", []):
        assert source["configMapRef"]["name"].startswith("lifecycle")
        # An empty variable counts as unset.
        variables |= {name: {"value": value} for name, value in config.items() if name in known and value}
    for variable in container.get("env", []):
        reference = variable.get("valueFrom", {}).get("configMapKeyRef")
        content = {"value": config[reference["key"]]} if reference else dict(variable)
        content.pop("name", None)
        unknown = set(re.findall(r"\$\((\w+)\)", content.get("value") or "")) - variables.keys()
        assert not unknown, f"{variable['name']} refers to {unknown}, which no variable before it defines"
        variables[variable["name"]] = content or {"value": ""}
    return [{"name": name, **content} for name, content in sorted(variables.items())]


def literals_of(document: Document) -> dict[str, str]:
    """Return the settings of the component that correspond to the annotations of a workload."""
    annotations = template_of(document)["metadata"]["annotations"]
    values = {name.partition("/")[2]: value for name, value in annotations.items() if name.startswith("tailscale-")}
    hostname = values["hostname"]
    hostname = hostname if "." in hostname else f"{hostname}.example.com"
    literals = {
        **SETTINGS,
        "HEADSCALE_API_KEY_FILE": "/run/secrets/lifecycle/HEADSCALE_API_KEY",
        "CLOUDFLARE_API_TOKEN_FILE": "/run/secrets/lifecycle/CLOUDFLARE_API_TOKEN",
        "SELF_HEAL": values.get("self-heal", "true"),
        "TS_HOSTNAME": hostname,
        "TS_EXTRA_ARGS": f"--login-server={LOGIN_SERVER} {values.get('tailscale-args', '')}".strip(),
        "TS_KUBE_SECRET": values.get("state-secret", ""),
    }
    optional = {
        "DNS_ALIASES": values.get("dns-aliases"),
        "DNS_SHARED_NAMES": values.get("dns-shared-names"),
        "AUTHKEY_TAGS": values.get("tags"),
        "LOG_LEVEL": values.get("log-level"),
        "NODE_POLICY": "keep" if "state-secret" in values else None,
    }
    return literals | {name: value for name, value in optional.items() if value}


def prepared_for_component(document: Document) -> Document:
    """Add to a workload what its owner has to add before the component is used.

    With a state Secret, cleanup needs the token of the service account. The component does not mount the token, so the
    owner has to do so (docs/add-a-service.md).
    """
    annotations = template_of(document)["metadata"]["annotations"]
    if STATE_SECRET in annotations:
        mount = {
            "name": "tailscale-lifecycle-token",
            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
            "readOnly": True,
        }
        spec = template_of(document)["spec"]
        spec["initContainers"] = [{"name": "cleanup", "volumeMounts": [mount]}, *spec.get("initContainers", [])]
    return document


def in_required_order(document: Document, spec: Document) -> Document:
    """Return the spec with the pod's own init containers first if the annotation init-containers is `before`."""
    annotations = template_of(document)["metadata"]["annotations"]
    if annotations.get("tailscale-lifecycle/init-containers") == "before":
        added = [container for container in spec["initContainers"] if container["name"] in CONTAINERS]
        own = [container for container in spec["initContainers"] if container["name"] not in CONTAINERS]
        spec["initContainers"] = [*own, *added]
    return spec
