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
"""The labels that Kubernetes recommends, which the chart adds to all objects."""

WITHOUT_BUILD: Values = {"build": {"enabled": False}}
WITHOUT_INJECTION: Values = {"inject": {"enabled": False}}
SUBJECTS = [{"kind": "ServiceAccount", "name": "grafana", "namespace": "services"}]
KEEP = {
    "name": "lifecycle-keep",
    "namespace": "services",
    "secret": "grafana-tailscale",
    "serviceAccountName": "grafana",
}

PARTS: dict[str, Values] = {
    "prune": {"prune": {"enabled": True, "namespaces": ["services"]}},
    "rbac/api-key-secret": {"rbac": {"apiKeySecret": {"enabled": True, "subjects": SUBJECTS}}},
    "rbac/exec": {"rbac": {"exec": {"enabled": True, "subjects": SUBJECTS}}},
    "rbac/exec-any-pod": {"rbac": {"exec": {"enabled": True, "anyPod": True, "subjects": SUBJECTS}}},
    "rbac/keep": {"rbac": {"keep": [KEEP]}},
    "rbac/events": {"rbac": {"events": [{"namespace": "services", "subjects": SUBJECTS}]}},
    "monitoring": {part: {"enabled": True} for part in ("podMonitor", "prometheusRule", "dashboard")},
}
FOLDERS: dict[str, Values] = {
    "build": WITHOUT_INJECTION,
    "deploy/inject": WITHOUT_BUILD,
    "deploy/inject-v1beta1": WITHOUT_BUILD,
    **{f"deploy/{name}": {**WITHOUT_BUILD, **WITHOUT_INJECTION, **values} for name, values in PARTS.items()},
}
"""By folder: the values with which the chart renders the objects of this folder, besides SITE."""
NAMESPACES = {
    "build": "tailscale-lifecycle",
    "deploy/inject": "tailscale-lifecycle-inject",
    "deploy/inject-v1beta1": "tailscale-lifecycle-inject",
    "deploy/monitoring": "monitoring",
}
"""By folder: the namespace of the release, if the objects depend on this namespace."""
KUBERNETES_VERSIONS = {"deploy/inject": "1.36.0", "deploy/inject-v1beta1": "1.35.9-gke.1"}
"""By folder: the version of Kubernetes, if the objects depend on it. Providers append suffixes such as `-gke.1`."""


def by_name(documents: list[Document]) -> dict[str, Document]:
    """Return the objects by kind and name. Remove generated suffixes of names, and decode binary data."""
    text = re.sub(r"(tailscale-lifecycle-build|lifecycle-prune)-[0-9a-z]{10}\b", r"\1", json.dumps(documents))
    objects: list[Document] = json.loads(text)
    for document in objects:
        for name, content in document.get("binaryData", {}).items():
            document["binaryData"][name] = b64decode(content)
    return {f"{document['kind']}/{document['metadata']['name']}": document for document in objects}


def render_folder(folder: str, chart: Path, copy_of_build: Path) -> list[Document]:
    """Render a Kustomize folder. The folder `build` is copied, and gets the same sources as the chart."""
    if folder != "build":
        return render(ROOT / folder)
    shutil.copytree(ROOT / folder, copy_of_build)
    shutil.copy(chart / "files/sources.tar.gz", copy_of_build)
    return render(copy_of_build)


@pytest.mark.parametrize("folder", FOLDERS)
def test_chart_renders_the_objects_of_the_kustomize_folder(folder: str, chart: Path, tmp_path: Path) -> None:
    namespace = NAMESPACES.get(folder, "any")
    options = (f"--namespace={namespace}", f"--kube-version={KUBERNETES_VERSIONS.get(folder, '1.36.0')}")
    from_chart = by_name(template(chart, {"settings": SITE, **FOLDERS[folder]}, *options))
    from_kustomize = by_name(render_folder(folder, chart, tmp_path / "copy"))
    # `helm install --create-namespace` creates the namespace of a release, so the chart does not contain it.
    from_kustomize.pop(f"Namespace/{namespace}", None)
    for name, expected in from_kustomize.items():
        expected_labels: dict[str, Any] = expected["metadata"].pop("labels", {})
        labels = from_chart[name]["metadata"].pop("labels")
        assert expected_labels.items() <= labels.items()
        assert labels.keys() - expected_labels.keys() <= ADDED_LABELS
        if folder == "deploy/prune":
            # The Kustomize folder sets no namespace. It is selected with `kubectl --namespace`.
            assert from_chart[name]["metadata"].pop("namespace") == "services"
    assert from_chart == from_kustomize


def test_every_folder_that_the_chart_contains_is_compared() -> None:
    """The chart contains no folders for single workloads (such as deploy/monitoring/annotations) or for ingress.

    The certificate in `cert-manager` is for ingress and single workloads, and `site` contains only settings.
    """
    not_in_chart = {"base", "cert-manager", "components", "ingress", "services", "site"}
    folders = {path.parent.relative_to(ROOT).as_posix() for path in DEPLOY.rglob("kustomization.yaml")}
    in_chart = {folder for folder in folders if folder.split("/")[1] not in not_in_chart}
    assert {*in_chart, "build"} - {"deploy/monitoring/annotations"} == set(FOLDERS)
