"""Test that the chart renders the same objects as the Kustomize folders, except for labels."""

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

ADDED_LABELS = {
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/name",
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/version",
    "helm.sh/chart",
}
"""The recommended labels, which the chart adds to all objects."""

DISABLED: Values = {"build": {"enabled": False}, "inject": {"enabled": False}}
SUBJECTS = [{"kind": "ServiceAccount", "name": "grafana", "namespace": "services"}]

FOLDERS: dict[str, tuple[str, Values, tuple[str, ...]]] = {
    "build": ("tailscale-lifecycle", {"inject": {"enabled": False}}, ()),
    "deploy/inject": ("tailscale-lifecycle-inject", {"build": {"enabled": False}}, ("--kube-version=1.36.0",)),
    "deploy/inject-v1beta1": (
        "tailscale-lifecycle-inject",
        {"build": {"enabled": False}},
        ("--kube-version=1.35.9-gke.1",),
    ),
    "deploy/prune": ("any", {**DISABLED, "prune": {"enabled": True, "namespaces": ["services"]}}, ()),
    "deploy/rbac/api-key-secret": (
        "any",
        {**DISABLED, "rbac": {"apiKeySecret": {"enabled": True, "subjects": SUBJECTS}}},
        (),
    ),
    "deploy/rbac/exec": ("any", {**DISABLED, "rbac": {"exec": {"enabled": True, "subjects": SUBJECTS}}}, ()),
    "deploy/rbac/exec-any-pod": (
        "any",
        {**DISABLED, "rbac": {"exec": {"enabled": True, "anyPod": True, "subjects": SUBJECTS}}},
        (),
    ),
    "deploy/rbac/keep": (
        "any",
        {
            **DISABLED,
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
        {**DISABLED, "rbac": {"events": [{"namespace": "services", "subjects": SUBJECTS}]}},
        (),
    ),
    "deploy/monitoring": (
        "monitoring",
        {**DISABLED, **{part: {"enabled": True} for part in ("podMonitor", "prometheusRule", "dashboard")}},
        (),
    ),
}
"""By folder: the namespace of the release, the values besides SITE, and options for Helm.

The namespace "any" has no effect on the objects.
"""


def comparable(documents: list[Document]) -> dict[str, Document]:
    """Return the objects by kind and name. Remove generated suffixes of names, and decode binary data."""
    text = re.sub(r"(tailscale-lifecycle-build|lifecycle-prune)-[0-9a-z]{10}\b", r"\1", json.dumps(documents))
    objects: list[Document] = json.loads(text)
    for document in objects:
        for name, content in document.get("binaryData", {}).items():
            document["binaryData"][name] = b64decode(content)
    return {f"{document['kind']}/{document['metadata']['name']}": document for document in objects}


def rendered_folder(folder: str, chart: Path, copy_of_build: Path) -> list[Document]:
    """Render a Kustomize folder. The folder `build` is copied, and gets the same sources as the chart."""
    if folder != "build":
        return render(ROOT / folder)
    shutil.copytree(ROOT / folder, copy_of_build)
    shutil.copy(chart / "files/sources.tar.gz", copy_of_build)
    return render(copy_of_build)


@pytest.mark.parametrize("folder", FOLDERS)
def test_chart_renders_the_objects_of_the_kustomize_folder(folder: str, chart: Path, tmp_path: Path) -> None:
    namespace, values, options = FOLDERS[folder]
    from_chart = comparable(template(chart, {"settings": SITE, **values}, f"--namespace={namespace}", *options))
    from_kustomize = comparable(rendered_folder(folder, chart, tmp_path / "copy"))
    # A chart does not contain the namespace of its release.
    from_kustomize.pop(f"Namespace/{namespace}", None)
    for name, expected in from_kustomize.items():
        expected_labels: dict[str, Any] = expected["metadata"].pop("labels", {})
        labels = from_chart[name]["metadata"].pop("labels")
        assert expected_labels.items() <= labels.items()
        assert labels.keys() - expected_labels.keys() <= ADDED_LABELS
        if folder == "deploy/prune":
            # The Kustomize folder sets no namespace. The operator selects the namespace with `kubectl --namespace`.
            assert from_chart[name]["metadata"].pop("namespace") == "services"
    assert from_chart == from_kustomize


def test_every_folder_that_the_chart_contains_is_compared() -> None:
    """The chart contains no folders for single workloads (such as deploy/monitoring/annotations) or for ingress."""
    not_in_chart = {"base", "cert-manager", "components", "ingress", "services", "site"}
    folders = {path.parent.relative_to(ROOT).as_posix() for path in DEPLOY.rglob("kustomization.yaml")}
    in_chart = {folder for folder in folders if folder.split("/")[1] not in not_in_chart}
    assert {*in_chart, "build"} - {"deploy/monitoring/annotations"} == set(FOLDERS)
