"""Read the workloads of with_tailscale.yaml, and render them with the components of deploy/components/lifecycle."""

from __future__ import annotations

import json
import tempfile
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.inject.labelled_workloads import template_of
from tests.inject.samples import write_kustomization
from tests.pod.rendering import containers, parse, render

Document = dict[str, Any]


@cache
def _workloads() -> tuple[Document, ...]:
    return tuple(parse(Path(__file__).with_name("with_tailscale.yaml").read_text()))


def workloads_with_tailscale() -> dict[str, Document]:
    """Return the workloads of with_tailscale.yaml by name."""
    return {document["metadata"]["name"]: deepcopy(document) for document in _workloads()}


def is_native(document: Document) -> bool:
    """Return True if the tailscale container is a native sidecar."""
    return containers(template_of(document)["spec"])["tailscale"].get("restartPolicy") == "Always"


def _suitable_variants(document: Document) -> tuple[str, ...]:
    """Return the variants of the component that are suitable for a workload.

    `sidecar` is for tailscale containers that are native sidecars already; `native` and `plain` are for the others, and
    `native` makes them native sidecars.
    """
    if is_native(document):
        return ("sidecar",)
    # `native` makes tailscale an init container, and a pod needs another container beside its init containers.
    return ("plain",) if len(template_of(document)["spec"]["containers"]) == 1 else ("native", "plain")


CASES = [
    (name, variant) for name, document in workloads_with_tailscale().items() for variant in _suitable_variants(document)
]
"""All pairs of a workload and a variant of the component that is suitable for this workload."""


@cache
def _rendered(variant: str) -> str:
    names = [name for name, case_variant in CASES if case_variant == variant]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in names:
            write_kustomization(folder / name, [workloads_with_tailscale()[name]], variant)
        (folder / "kustomization.yaml").write_text(yaml.safe_dump({"resources": names}))
        return json.dumps({document["metadata"]["name"]: document for document in render(folder)})


def rendered_workload(name: str, variant: str) -> Document:
    """Return a workload with the component. All workloads of a variant are rendered as parts of one kustomization."""
    document: Document = json.loads(_rendered(variant))[name]
    return document
