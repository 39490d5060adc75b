"""Run the Terraform modules of deploy/terraform, and compare their manifests with those of Kustomize."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hcl2
import pytest

from tests.pod.rendering import ROOT, Document

MODULES = ROOT / "deploy" / "terraform"

BINARY = shutil.which("terraform") or shutil.which("tofu")
needs_terraform = pytest.mark.skipif(BINARY is None, reason="neither terraform nor tofu is on PATH")

Manifests = dict[str, Document]
"""Manifests by kind and name, such as `Service/grafana`."""


def parse_hcl(text: str) -> Any:
    """Parse HCL without Terraform."""
    return hcl2.loads(
        text, serialization_options=hcl2.SerializationOptions(strip_string_quotes=True, explicit_blocks=False)
    )


def input_variables(module: str) -> dict[str, Document]:
    """Return the block of each input variable of a module."""
    blocks = parse_hcl((MODULES / module / "variables.tf").read_text())["variable"]
    return {name: body for block in blocks for name, body in block.items()}


def terraform(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Terraform or OpenTofu without the user's configuration and without a check for updates."""
    assert BINARY
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    return subprocess.run(
        [BINARY, *arguments],
        cwd=folder,
        env=environment | {"TF_CLI_CONFIG_FILE": os.devnull, "CHECKPOINT_DISABLE": "1", "TF_IN_AUTOMATION": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def root_module(folder: Path, inputs_of_blocks: dict[str, dict[str, Any]], module: str = "service") -> Path:
    """Create and initialize a root module (a Terraform configuration), and return its folder.

    Args:
        folder: the folder in which the root module is created.
        inputs_of_blocks: the inputs of each `module` block, by the name of the block.
        module: the module in deploy/terraform that all blocks use.
    """
    copy_modules(folder)
    source = f"./deploy/terraform/{module}"
    (folder / "main.tf.json").write_text(
        json.dumps(
            {
                "module": {name: {"source": source} | inputs for name, inputs in inputs_of_blocks.items()},
                "output": {name: {"value": f"${{module.{name}.manifests}}"} for name in inputs_of_blocks},
            }
        )
    )
    return initialize(folder)


def copy_modules(folder: Path) -> None:
    """Copy the modules and the folder build, which they read. Terraform writes into the folder in which it runs."""
    shutil.copytree(MODULES, folder / "deploy" / "terraform")
    shutil.copytree(ROOT / "build", folder / "build", ignore=shutil.ignore_patterns("sources.tar.gz"))


def initialize(folder: Path) -> Path:
    """Run `terraform init`, and return the folder."""
    done = terraform("init", "-backend=false", "-input=false", "-no-color", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


def apply(folder: Path) -> dict[str, Any]:
    """Apply a root module and return its state."""
    done = terraform("apply", "-auto-approve", "-input=false", "-no-color", folder=folder)
    assert done.returncode == 0, done.stderr
    state: dict[str, Any] = json.loads((folder / "terraform.tfstate").read_text())
    return state


def planning_errors(folder: Path) -> list[tuple[str, str]]:
    """Plan a root module. Return for each error the name of the `module` block, or "" if unknown, and the message."""
    done = terraform("plan", "-input=false", "-json", folder=folder)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    diagnostics = [event["diagnostic"] for event in events if event.get("@level") == "error"]
    return [
        (diagnostic.get("snippet", {}).get("context", "").removeprefix("module."), diagnostic["detail"])
        for diagnostic in diagnostics
    ]


def by_name(documents: list[Document]) -> Manifests:
    """Return documents by kind and name, without the Secret for tailscale's state, which the modules do not create."""
    return {
        f"{document['kind']}/{document['metadata']['name']}": document
        for document in documents
        if document["kind"] != "Secret"
    }


def normalized(manifests: Manifests, workload: str) -> Manifests:
    """Return manifests without what depends on the tool that created them.

    These are the prefix and suffix of a ConfigMap's name, empty variables, and the order of variables, mounts and
    volumes.
    """
    text = json.dumps(manifests)
    for manifest in manifests.values():
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "ConfigMap":
            base = name.rpartition("-")[0].removeprefix(f"{workload}-")
            text = text.replace(json.dumps(name), json.dumps(base))
    return by_name([_sorted(document) for document in json.loads(text).values()])


def _sorted(value: Any, field: str = "") -> Any:
    match value:
        case dict():
            return {name: _sorted(item, name) for name, item in value.items() if (name, item) != ("value", "")}
        case list():
            items = [_sorted(item) for item in value]
            return sorted(items, key=json.dumps) if field in ("env", "volumeMounts", "volumes") else items
        case _:
            return value


def without_kubernetes_providers(configuration: str) -> str:
    """Replace the resources of the Kubernetes providers, which are not installed, with Terraform's `terraform_data`."""
    text = re.sub(r'(?ms)^provider "\w+" \{.*?^\}\n|^  required_providers \{.*?^  \}\n', "", configuration)
    text = re.sub(r"\bmanifest( *=)", r"input\1", re.sub(r"yaml_body( *=) yamlencode\((.*)\)", r"manifest\1 \2", text))
    return re.sub(r"\b(kubernetes|kubectl)_manifest\b", "terraform_data", text)


def manifests_in_state(state: dict[str, Any], name: str) -> Manifests:
    """Return the manifests of a resource that `without_kubernetes_providers` has replaced."""
    (resource,) = (resource for resource in state["resources"] if resource["name"] == name)
    return {instance["index_key"]: instance["attributes"]["input"]["value"] for instance in resource["instances"]}
