"""Test that a real API server accepts the manifests of the Terraform modules, and does not change their values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.api_server import ApiServer
from tests.terraform.modules import apply, needs_terraform, root_module
from tests.terraform.test_service import INPUTS


@needs_terraform
@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        pytest.param("service", INPUTS | {"environment": {"HOST": "127.0.0.1", "EMPTY": ""}}, id="service"),
        pytest.param("service", INPUTS | {"tailscale_enabled": False}, id="service-without-vpn"),
        # `sources` can be any file that exists.
        pytest.param("image-build", {"sources": "main.tf.json"}, id="image-build"),
    ],
)
def test_manifests_are_accepted_unchanged(
    api_server: ApiServer, module: str, inputs: dict[str, Any], tmp_path: Path
) -> None:
    """Terraform's resource kubernetes_manifest fails if the API server has changed a value."""
    outputs = apply(root_module(tmp_path, {"wiki": inputs}, module))["outputs"]
    for manifest in outputs["wiki"]["value"].values():
        if manifest["metadata"].get("namespace") == "tailscale-lifecycle":
            # A dry run does not create the module's namespace, so use one that exists.
            manifest["metadata"]["namespace"] = "elsewhere"
        options = ("--server-side", "--dry-run=server", "--field-manager=Terraform")
        text = api_server.kubectl("apply", *options, "-o", "yaml", "-f", "-", text=json.dumps(manifest))
        assert without_added_fields(yaml.safe_load(text), manifest) == manifest


def without_added_fields(stored: Any, sent: Any) -> Any:
    """Return the stored value without the fields that the API server has added to the sent value."""
    match stored, sent:
        case dict(), dict():
            return {name: without_added_fields(stored.get(name), value) for name, value in sent.items()}
        case list(), list() if len(stored) == len(sent):
            return list(map(without_added_fields, stored, sent))
    return stored
