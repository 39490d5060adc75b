"""Test that the Terraform module `service` creates the same objects as scripts/new-service, and checks its inputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.pod.rendering import NEWEST_KUBERNETES, copy_deploy, new_service, render
from tests.terraform.modules import (
    MODULES,
    Manifests,
    apply,
    by_name,
    comparable,
    errors,
    needs_terraform,
    root_module,
    variables,
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


@pytest.fixture(scope="module")
def kustomized(tmp_path_factory: pytest.TempPathFactory) -> Manifests:
    """Return the objects that scripts/new-service and Kustomize create from INPUTS."""
    copy = copy_deploy(tmp_path_factory.mktemp("kustomize"))
    done = new_service(copy, INPUTS["name"], INPUTS["image"], str(INPUTS["port"]), INPUTS["data_path"])
    assert done.returncode == 0, done.stderr
    return comparable(by_name(render(copy / "deploy/services" / INPUTS["name"])), INPUTS["name"])


@needs_terraform
def test_module_creates_the_objects_of_kustomize(kustomized: Manifests, tmp_path: Path) -> None:
    state = apply(root_module(tmp_path, {"wiki": INPUTS}))
    manifests: Manifests = state["outputs"]["wiki"]["value"]
    for manifest in manifests.values():
        kubernetes_validate.validate(manifest, NEWEST_KUBERNETES, strict=True)
    assert comparable(manifests, "wiki") == kustomized


def test_templates_contain_the_objects_of_kustomize(kustomized: Manifests) -> None:
    """This test does not need Terraform, because `fill_template` replaces the placeholders in the same way."""
    defaults = {name: block["default"] for name, block in variables("service").items() if "default" in block}
    values = defaults | INPUTS
    # The module computes these values.
    values["state_secret"] = f"{values['name']}-tailscale"
    values["headscale_url"] = "http://headscale.headscale.svc.cluster.local:8080"
    values["allow_list"] = " ".join(f"{prefix} 1;" for prefix in values["vpn_prefixes"])
    values["vpn_prefixes"] = ",".join(values["vpn_prefixes"])
    configuration = fill_template("configuration", values)
    for manifest in configuration.values():
        # Like the module, append a suffix, which `comparable` removes.
        manifest["metadata"]["name"] += "-hash"
    names = {f"configuration.{name}": manifest["metadata"]["name"] for name, manifest in configuration.items()}
    manifests = [*configuration.values(), *fill_template("manifests", values | names)]
    assert comparable(by_name(manifests), values["name"]) == kustomized


def fill_template(template: str, values: dict[str, Any]) -> Any:
    """Replace the placeholders of a template, and return the parsed YAML."""
    text = (MODULES / "service" / f"{template}.yaml.tftpl").read_text()
    return yaml.safe_load(re.sub(r"\$\{([a-z_.]+)\}", lambda placeholder: str(values[placeholder[1]]), text))


# --- Inputs -------------------------------------------------------------------------------------------

INVALID: list[tuple[str, Any]] = [
    ("name", "Wiki"),
    ("name", "wiki-"),
    ("name", "4wiki"),
    ("name", "w" * 53),
    ("name", ""),
    ("image", "docker.io/a/wiki"),
    ("image", "docker.io/a/wiki:latest"),
    ("image", "docker.io/a/wiki:"),
    ("image", "wiki:1.2"),
    ("image", "a/wiki:1.2"),
    ("image", "docker.io/a/wiki:1|2"),
    ("image", "docker.io/a/wiki:1.2\ndocker.io/a/wiki:1.2"),
    ("port", 443),
    ("port", 9003),
    ("port", 0),
    ("port", 70000),
    ("port", 80.5),
    ("data_path", "data"),
    ("data_path", "/"),
    ("data_path", "/data/"),
    ("data_path", "/tmp"),
    ("data_path", "/data/../tmp"),
    ("data_path", '/da"ta'),
]
"""Names and values of inputs that both the module and scripts/new-service refuse."""

VALID: list[tuple[str, Any]] = [
    ("data_path", None),
    ("image", "docker.io/library/postgres:16"),
    ("image", f"docker.io/a/wiki@sha256:{'0' * 64}"),
    ("image", f"docker.io/a/wiki:1.2@sha256:{'0' * 64}"),
    ("login_server", "http://10.96.0.20:8080"),
]
"""Names and values of inputs that the module accepts."""

INVALID_FOR_MODULE_ONLY: list[tuple[str, Any]] = [
    ("application", ["not", "an", "object"]),
    ("application", {"image": "docker.io/a/other:1"}),
    ("claim_name", "Data"),
    ("domain", "example"),
    ("domain", 'example.com"'),
    ("environment", {"1NAME": ""}),
    ("headscale_namespace", "head scale"),
    ("headscale_url", "headscale.example.com"),
    ("headscale_user", "a b"),
    ("lifecycle_image", "tailscale lifecycle"),
    ("login_server", "headscale.example.com"),
    ("login_server", "http://headscale.headscale.svc.cluster.local:8080"),
    ("namespace", "a/b"),
    ("probe_path", "health"),
    ("probe_path", "/;return 200"),
    ("run_as_group", 1.5),
    ("run_as_user", 0),
    ("settings", {"CLOUDFLARE_API_TOKEN": "secret"}),
    ("settings", {"HEADSCALE_USER": "other"}),
    ("settings", {"poll_interval": "1m"}),
    ("state_secret", "Grafana"),
    ("storage_size", "10"),
    ("volumes", {"name": "data"}),
    ("volumes", ["data"]),
    ("vpn_prefixes", ["100.64.0.0"]),
    ("vpn_prefixes", []),
]
"""Names and values of inputs that the module refuses. Most of these inputs are not arguments of scripts/new-service."""


@pytest.mark.full
@needs_terraform
def test_only_invalid_inputs_are_refused_and_the_error_names_them(tmp_path: Path) -> None:
    invalid = {f"invalid{number}": case for number, case in enumerate([*INVALID, *INVALID_FOR_MODULE_ONLY])}
    valid = {f"valid{number}": case for number, case in enumerate(VALID)}
    calls = {call: INPUTS | {name: value} for call, (name, value) in (invalid | valid).items()}
    messages = errors(root_module(tmp_path, calls))
    assert sorted(call for call, _ in messages) == sorted(invalid)
    assert [text for call, text in messages if not text.startswith(f"{invalid[call][0]} must")] == []


@pytest.mark.full
def test_new_service_script_refuses_the_same_inputs(tmp_path: Path) -> None:
    copy_deploy(tmp_path)
    for name, value in INVALID:
        inputs = {"name": "wiki", "image": "docker.io/a/wiki:1.2", "port": 8080, "data_path": "/data"} | {name: value}
        assert new_service(tmp_path, *map(str, inputs.values())).returncode == 2, (name, value)


def test_every_input_has_a_description_and_a_validation() -> None:
    for module in ("service", "image-build"):
        for name, block in variables(module).items():
            assert block["description"].endswith("."), name
            assert block["type"] == "bool" or block["validation"], name
