"""Test that a real API server accepts what the Terraform modules give, and keeps every value as it is."""

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
        pytest.param("image-build", {"sources": "main.tf.json"}, id="image-build"),
    ],
)
def test_manifests_are_accepted_unchanged(
    api_server: ApiServer, module: str, inputs: dict[str, Any], tmp_path: Path
) -> None:
    """kubernetes_manifest reports an error after an apply that changed a value."""
    outputs = apply(root_module(tmp_path, {"wiki": inputs}, module))["outputs"]
    for manifest in outputs["wiki"]["value"].values():
        if manifest["metadata"].get("namespace") == "tailscale-lifecycle":
            manifest["metadata"]["namespace"] = "elsewhere"  # exists already
        options = ("--server-side", "--dry-run=server", "--field-manager=Terraform")
        text = api_server.kubectl("apply", *options, "-o", "yaml", "-f", "-", text=json.dumps(manifest))
        assert list(differences(manifest, yaml.safe_load(text))) == []


def differences(wanted: Any, found: Any, place: str = "") -> Iterator[str]:
    """Iterate over what was not stored as it was sent. Fields that the API server added do not count."""
    match wanted, found:
        case dict(), dict():
            for name, value in wanted.items():
                yield from differences(value, found.get(name), f"{place}.{name}")
        case list(), list() if len(wanted) == len(found):
            for number, (first, second) in enumerate(zip(wanted, found, strict=True)):
                yield from differences(first, second, f"{place}[{number}]")
        case _ if wanted != found:
            yield f"{place}: {wanted!r} became {found!r}"
