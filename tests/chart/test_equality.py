"""Test that the chart renders the objects of the Kustomize folders."""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from tests.chart.helm import SITE, Document, Values, template
from tests.pod.rendering import DEPLOY, ROOT, render

RECOMMENDED = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/name",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/version",
    "helm.sh/chart",
}

OFF: Values = {"build": {"enabled": False}, "inject": {"enabled": False}}
SUBJECTS = [{"kind": "ServiceAccount", "name": "grafana", "namespace": "services"}]

PARTS: dict[str, tuple[str, Values, tuple[str, ...]]] = {
    "build": ("tailscale-lifecycle", {"inject": {"enabled": False}}, ()),
    "deploy/inject": ("tailscale-lifecycle-inject", {"build": {"enabled": False}}, ("--kube-version=1.36.0",)),
    "deploy/inject-v1beta1": (
        "tailscale-lifecycle-inject",
        {"build": {"enabled": False}},
        ("--kube-version=1.35.9-gke.1",),
    ),
    "deploy/prune": ("any", {**OFF, "prune": {"enabled": True, "namespaces": ["services"]}}, ()),
    "deploy/rbac/api-key-secret": (
        "any",
        {**OFF, "rbac": {"apiKeySecret": {"enabled": True, "subjects": SUBJECTS}}},
        (),
    ),
    "deploy/rbac/exec": ("any", {**OFF, "rbac": {"exec": {"enabled": True, "subjects": SUBJECTS}}}, ()),
    "deploy/rbac/exec-any-pod": (
        "any",
        {**OFF, "rbac": {"exec": {"enabled": True, "anyPod": True, "subjects": SUBJECTS}}},
        (),
    ),
    "deploy/rbac/keep": (
        "any",
        {
            **OFF,
            "rbac": {
                "keep": [
                    {
                        "name": "lifecycle-keep",
                        "namespace": "services",
                        "secret": "grafana-tailscale",
                        "serviceAccountName": "grafana",
                    }
                ]
            },
        },
        (),
    ),
    "deploy/rbac/events": (
        "any",
        {**OFF, "rbac": {"events": [{"namespace": "services", "subjects": SUBJECTS}]}},
        (),
    ),
    "deploy/monitoring": (
        "monitoring",
        {**OFF, **{part: {"enabled": True} for part in ("podMonitor", "prometheusRule", "dashboard")}},
        (),
    ),
}
"""By folder: the namespace of the release, the values besides SITE, and options."""


def comparable(documents: list[Document]) -> dict[str, Document]:
    """Return the objects by their names, without the suffixes that Kustomize and the chart generate."""
    text = re.sub(r"(tailscale-lifecycle-build|lifecycle-prune)-[0-9a-z]{10}\b", r"\1", json.dumps(documents))
    objects: list[Document] = json.loads(text)
    for document in objects:
        for name, content in document.get("binaryData", {}).items():
            document["binaryData"][name] = b64decode(content)
    return {f"{document['kind']}/{document['metadata']['name']}": document for document in objects}


def rendered_folder(folder: str, chart: Path, copy: Path) -> list[Document]:
    """Render a Kustomize folder, with the sources of the chart."""
    if folder != "build":
        return render(ROOT / folder)
    shutil.copytree(ROOT / folder, copy)
    shutil.copy(chart / "files/sources.tar.gz", copy)
    return render(copy)


@pytest.mark.parametrize("folder", PARTS)
def test_objects_equal_those_of_kustomize(folder: str, chart: Path, tmp_path: Path) -> None:
    namespace, values, options = PARTS[folder]
    ours = comparable(template(chart, {"settings": SITE, **values}, f"--namespace={namespace}", *options))
    theirs = comparable(rendered_folder(folder, chart, tmp_path / "copy"))
    # Helm does not own the namespace of a release.
    theirs.pop(f"Namespace/{namespace}", None)
    for name, expected in theirs.items():
        labels: dict[str, Any] = expected["metadata"].pop("labels", {})
        added = ours[name]["metadata"].pop("labels")
        assert labels.items() <= added.items()
        assert added.keys() - labels.keys() <= RECOMMENDED
        if folder == "deploy/prune":
            assert ours[name]["metadata"].pop("namespace") == "services"
    assert ours == theirs


def test_every_folder_of_a_part_is_compared() -> None:
    """The folders of one workload, and those of the login server and of Ingresses, are not parts of the chart."""
    of_workloads = {"base", "cert-manager", "components", "ingress", "services", "site"}
    folders = {path.parent.relative_to(ROOT).as_posix() for path in DEPLOY.rglob("kustomization.yaml")}
    ours = {folder for folder in folders if folder.split("/")[1] not in of_workloads} - {
        "deploy/monitoring/annotations"
    }
    assert {*ours, "build"} == set(PARTS)
