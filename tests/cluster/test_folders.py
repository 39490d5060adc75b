"""Test that a real API server accepts every folder of deploy/ that operators apply."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import yaml

from tests.cluster.api_server import ApiServer, RefusedError
from tests.cluster.conftest import custom_resource_definition
from tests.pod.rendering import FOLDERS, SHIPPED_WORKLOADS, manifests_of
from tests.real.programs import eventually


@pytest.mark.parametrize("name", [*FOLDERS, *SHIPPED_WORKLOADS])
def test_folder_is_accepted(api_server: ApiServer, name: str) -> None:
    documents = manifests_of(name)
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
