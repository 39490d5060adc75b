"""Test that a real API server accepts the manifests of the Terraform modules, and does not change their values."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
        assert list(differences(manifest, yaml.safe_load(text))) == []


def differences(sent: Any, stored: Any, path: str = "") -> Iterator[str]:
    """Iterate over the sent values that the API server has changed. Fields that it has added are ignored."""
    match sent, stored:
        case dict(), dict():
            for name, value in sent.items():
                yield from differences(value, stored.get(name), f"{path}.{name}")
        case list(), list() if len(sent) == len(stored):
            for number, (sent_item, stored_item) in enumerate(zip(sent, stored, strict=True)):
                yield from differences(sent_item, stored_item, f"{path}[{number}]")
        case _ if sent != stored:
            yield f"{path}: {sent!r} became {stored!r}"
