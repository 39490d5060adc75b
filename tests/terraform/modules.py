"""Run the Terraform modules, and bring manifests into a form in which they can be compared."""

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


def parsed(text: str) -> Any:
    """Parse HCL without Terraform."""
    return hcl2.loads(
        text, serialization_options=hcl2.SerializationOptions(strip_string_quotes=True, explicit_blocks=False)
    )


def variables(module: str) -> dict[str, Document]:
    """Return the blocks of a module's input variables."""
    blocks = parsed((MODULES / module / "variables.tf").read_text())["variable"]
    return {name: body for block in blocks for name, body in block.items()}


def terraform(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Terraform or OpenTofu without network and without the user's configuration."""
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


def root_module(folder: Path, calls: dict[str, dict[str, Any]], module: str = "service") -> Path:
    """Create a root module that calls a module once for each set of inputs, and initialize it."""
    copied(folder)
    source = f"./deploy/terraform/{module}"
    (folder / "main.tf.json").write_text(
        json.dumps(
            {
                "module": {name: {"source": source} | inputs for name, inputs in calls.items()},
                "output": {name: {"value": f"${{module.{name}.manifests}}"} for name in calls},
            }
        )
    )
    return initialized(folder)


def copied(folder: Path) -> None:
    """Copy what the modules consist of, because Terraform writes into the folder that it runs in."""
    shutil.copytree(MODULES, folder / "deploy" / "terraform")
    shutil.copytree(ROOT / "build", folder / "build", ignore=shutil.ignore_patterns("sources.tar.gz"))


def initialized(folder: Path) -> Path:
    """Run terraform init."""
    done = terraform("init", "-backend=false", "-input=false", "-no-color", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


def applied(folder: Path) -> dict[str, Any]:
    """Apply a root module and return its state."""
    done = terraform("apply", "-auto-approve", "-input=false", "-no-color", folder=folder)
    assert done.returncode == 0, done.stderr
    state: dict[str, Any] = json.loads((folder / "terraform.tfstate").read_text())
    return state


def errors(folder: Path) -> list[tuple[str, str]]:
    """Plan a root module and return each error: the call of the module, if it is known, and the message."""
    done = terraform("plan", "-input=false", "-json", folder=folder)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    found = [event["diagnostic"] for event in events if event.get("@level") == "error"]
    return [(item.get("snippet", {}).get("context", "").removeprefix("module."), item["detail"]) for item in found]


def keyed(documents: list[Document]) -> Manifests:
    """Return manifests by kind and name, as the modules do, without the state Secret."""
    return {f"{item['kind']}/{item['metadata']['name']}": item for item in documents if item["kind"] != "Secret"}


def comparable(manifests: Manifests, workload: str) -> Manifests:
    """Remove generated parts of names, and what has no effect: empty variables and the order of named items."""
    text = json.dumps(manifests)
    for manifest in manifests.values():
        name = manifest["metadata"]["name"]
        if manifest["kind"] == "ConfigMap":
            base = name.rpartition("-")[0].removeprefix(f"{workload}-")
            text = text.replace(json.dumps(name), json.dumps(base))
    documents = [_sorted(document) for document in json.loads(text).values()]
    return keyed(documents)


def _sorted(part: Any, field: str = "") -> Any:
    match part:
        case dict():
            return {name: _sorted(value, name) for name, value in part.items() if (name, value) != ("value", "")}
        case list():
            items = [_sorted(value) for value in part]
            return sorted(items, key=json.dumps) if field in ("env", "volumeMounts", "volumes") else items
        case _:
            return part


def with_stand_ins(configuration: str) -> str:
    """Replace the resources of the providers, which are not installed here, by one that is part of Terraform."""
    text = re.sub(r'(?ms)^provider "\w+" \{.*?^\}\n|^  required_providers \{.*?^  \}\n', "", configuration)
    text = re.sub(r"\bmanifest( *=)", r"input\1", re.sub(r"yaml_body( *=) yamlencode\((.*)\)", r"manifest\1 \2", text))
    return re.sub(r"\b(kubernetes|kubectl)_manifest\b", "terraform_data", text)


def resources(state: dict[str, Any], name: str) -> Manifests:
    """Return the manifests of the stand-ins for a resource."""
    (found,) = (resource for resource in state["resources"] if resource["name"] == name)
    return {item["index_key"]: item["attributes"]["input"]["value"] for item in found["instances"]}
