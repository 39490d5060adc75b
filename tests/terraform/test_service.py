"""Test that the Terraform module `service` creates the same objects as scripts/new-service, and checks its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.pod.rendering import NEWEST_KUBERNETES, copy_deploy, new_service, render
from tests.pod.test_new_service import INVALID_ARGUMENTS, VALID_IMAGES
from tests.terraform.modules import (
    Manifests,
    apply,
    by_name,
    input_variables,
    needs_terraform,
    normalized,
    planning_errors,
    root_module,
)

INPUTS: dict[str, Any] = {
    "name": "wiki",
    "domain": "example.com",
    "image": "registry.example.com:5000/a_team/wiki:v1.2.3-alpine",
    "port": 8080,
    "data_path": "/srv/wiki",
    "login_server": "https://headscale.example.com",
}


# --- Objects ------------------------------------------------------------------------------------------


@needs_terraform
def test_module_creates_the_objects_of_kustomize(tmp_path: Path) -> None:
    state = apply(root_module(tmp_path / "terraform", {"wiki": INPUTS}))
    manifests: Manifests = state["outputs"]["wiki"]["value"]
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, NEWEST_KUBERNETES, strict=True)
    copy = copy_deploy(tmp_path / "kustomize")
    done = new_service(copy, INPUTS["name"], INPUTS["image"], str(INPUTS["port"]), INPUTS["data_path"])
    assert done.returncode == 0, done.stderr
    from_kustomize = by_name(render(copy / "deploy/services/wiki"))
    assert normalized(manifests, "wiki") == normalized(from_kustomize, "wiki")


# --- Inputs -------------------------------------------------------------------------------------------

VALID: dict[str, list[Any]] = {
    "data_path": [None],
    "image": [
        "docker.io/library/postgres:16",
        f"docker.io/a/wiki@sha256:{'0' * 64}",
        f"docker.io/a/wiki:1.2@sha256:{'0' * 64}",
        *VALID_IMAGES,
    ],
    "login_server": ["http://10.96.0.20:8080"],
}
"""Values that the module accepts besides INPUTS, by input."""

INVALID: dict[str, list[Any]] = INVALID_ARGUMENTS | {
    "application": [["not", "an", "object"], {"image": "docker.io/a/other:1"}],
    "claim_name": ["Data"],
    "domain": ["example", 'example.com"'],
    "environment": [{"1NAME": ""}],
    "headscale_namespace": ["head scale"],
    "headscale_url": ["headscale.example.com"],
    "headscale_user": ["a b"],
    "lifecycle_image": ["tailscale lifecycle"],
    # With a host name, the URL must be https.
    "login_server": ["headscale.example.com", "http://headscale.headscale.svc.cluster.local:8080"],
    "namespace": ["a/b"],
    "probe_path": ["health", "/;return 200"],
    "run_as_group": [1.5],
    "run_as_user": [0],
    "settings": [{"CLOUDFLARE_API_TOKEN": "secret"}, {"HEADSCALE_USER": "other"}, {"poll_interval": "1m"}],
    "state_secret": ["Grafana"],
    "storage_size": ["10"],
    "volumes": [{"name": "data"}, ["data"]],
    "vpn_prefixes": [["100.64.0.0"], ["100.64.0.1/10"], []],
}
"""Values that the module refuses, by input. scripts/new-service refuses the values in INVALID_ARGUMENTS, too."""


def _cases(values: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name in values for value in values[name]]


@pytest.mark.full
@needs_terraform
def test_only_invalid_inputs_are_refused_and_the_error_names_them(tmp_path: Path) -> None:
    """Each case is one use of the module in a Terraform configuration, with the name `invalid<N>` or `valid<N>`."""
    invalid = {f"invalid{number}": case for number, case in enumerate(_cases(INVALID))}
    valid = {f"valid{number}": case for number, case in enumerate(_cases(VALID))}
    uses = {use: INPUTS | {name: value} for use, (name, value) in (invalid | valid).items()}
    errors = planning_errors(root_module(tmp_path, uses))
    assert sorted(use for use, _ in errors) == sorted(invalid)
    assert [text for use, text in errors if not text.startswith(f"{invalid[use][0]} must")] == []


def test_every_input_has_a_description_and_a_validation() -> None:
    for module in ("service", "image-build"):
        for name, block in input_variables(module).items():
            assert block["description"].endswith("."), name
            assert block["type"] == "bool" or block["validation"], name
