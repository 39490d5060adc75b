"""Test that a real API server accepts every folder of deploy/ that operators apply."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import pytest
import yaml

from tests.cluster.api_server import ApiServer, RefusedError
from tests.cluster.conftest import custom_resource_definition
from tests.pod.rendering import DEPLOY, SHIPPED_WORKLOADS, manifests_of, render
from tests.real.programs import eventually

NOT_APPLIED: Final = ("base", "ingress/controller", "services/_template", "inject", "inject-v1beta1")
"""Folders that only other folders include, and folders that the fixture `api_server` applies."""


def folders() -> list[str]:
    """Return the workloads, and the other folders with a kustomization that is not a component."""
    names = [f"services/{name}" for name in SHIPPED_WORKLOADS]
    for file in sorted(DEPLOY.rglob("kustomization.yaml")):
        name = str(file.parent.relative_to(DEPLOY))
        if yaml.safe_load(file.read_text())["kind"] == "Kustomization" and name not in (*NOT_APPLIED, *names):
            names.append(name)
    return names


@pytest.mark.parametrize("folder", folders())
def test_folder_is_accepted(api_server: ApiServer, folder: str) -> None:
    parent, _, name = folder.partition("/")
    documents = manifests_of(name) if parent == "services" else render(DEPLOY / folder)
    for document in documents:
        create_prerequisites(api_server, document)
    text = yaml.safe_dump_all(documents)
    options = ("--server-side", "--dry-run=server", "-o", "name", "-f", "-")
    accepted = api_server.kubectl("apply", *options, text=text)
    assert len(accepted.splitlines()) == len(documents)


def create_prerequisites(server: ApiServer, document: dict[str, Any]) -> None:
    """Create the namespace of an object, and the definition of its kind if the object is a custom resource.

    The server refuses to create what already exists.
    """
    metadata, (group, _, version) = document["metadata"], document["apiVersion"].rpartition("/")
    if "namespace" in metadata:
        with suppress(RefusedError):
            server.kubectl("create", "namespace", metadata["namespace"])
    if "." in group and not group.endswith("k8s.io"):
        with suppress(RefusedError):
            server.create(custom_resource_definition(document["kind"], group, version))
        eventually(lambda: _is_served(server, f"/apis/{group}/{version}", document["kind"]), group, timeout_s=60)


def _is_served(server: ApiServer, path: str, kind: str) -> bool:
    with suppress(RefusedError):
        return any(resource["kind"] == kind for resource in server.request("GET", path)["resources"])
    return False
