"""The page about moving from Terraform: its configuration is valid, and does what the page says."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pages import ROOT, blocks, quoted, rows
from tests.pod.rendering import DEPLOY, copy_deploy, of_kind, render, workload_resource
from tests.terraform.modules import (
    applied,
    copied,
    initialized,
    needs_terraform,
    parsed,
    resources,
    terraform,
    variables,
    with_stand_ins,
)

PAGE = (ROOT / "docs/move-from-terraform.md").read_text()
CONFIGURATION = [re.sub(r"(?m)^   ", "", block.text) for block in blocks(PAGE, "hcl")]
COMMANDS = [re.sub(r"(?m)^   ", "", block.text) for block in blocks(PAGE, "sh")]
OLD = sorted(set(re.findall(r"from = (\w+)\.(\w+)", "".join(CONFIGURATION))))
"""Type and name of the resources that the page removes from Terraform."""


def with_patch(folder: Path) -> list[dict[str, Any]]:
    """Render the folder of Redmine with the patch on the page."""
    kustomization = copy_deploy(folder) / "deploy/services/redmine/kustomization.yaml"
    (patch,) = (yaml.safe_load(block.text) for block in blocks(PAGE, "yaml"))
    merged = yaml.safe_load(kustomization.read_text())
    merged["patches"] += patch["patches"]
    kustomization.write_text(yaml.safe_dump(merged))
    return render(kustomization.parent)


@pytest.mark.full
@needs_terraform
def test_configuration_moves_workloads_without_touching_the_old_pods(tmp_path: Path) -> None:
    copied(tmp_path)
    (tmp_path / "sources.tar.gz").write_bytes(b"packed")
    (tmp_path / "redmine.yaml").write_text(yaml.safe_dump_all(with_patch(tmp_path / "kustomize")))
    (tmp_path / "old.tf").write_text("".join(f'resource "terraform_data" "{kind}_{name}" {{}}\n' for kind, name in OLD))
    applied(initialized(tmp_path))

    (tmp_path / "old.tf").unlink()
    text = "\n".join(CONFIGURATION).replace('"kubectl_manifest" "grafana"', '"kubectl_manifest" "grafana_by_kubectl"')
    text = re.sub(r"from = (\w+)\.(\w+)", r"from = terraform_data.\1_\2", text)
    text = re.sub(r'"git::https://.*//(deploy/terraform/[\w-]+)\?ref=.*"', r'"./\1"', text)
    (tmp_path / "main.tf").write_text(with_stand_ins(text))
    done = terraform("plan", "-out=plan", "-no-color", folder=initialized(tmp_path))
    assert done.returncode == 0, done.stderr
    changes = json.loads(terraform("show", "-json", "plan", folder=tmp_path).stdout)["resource_changes"]
    actions = {change["address"]: change["change"]["actions"] for change in changes}
    assert [action for action in actions.values() if "delete" in action] == []
    assert [address for address, action in actions.items() if action == ["forget"]] == [
        f"terraform_data.{kind}_{name}" for kind, name in OLD
    ]
    imported = {change["index"] for change in changes if "importing" in change["change"]}
    assert imported == {"Service/grafana", "ServiceAccount/grafana"}

    state = applied(tmp_path)
    for name in ("grafana", "grafana_by_kubectl", "redmine", "image_build"):
        assert not of_kind(list(resources(state, name).values()), "Secret")
    assert workload_resource(list(resources(state, "grafana").values()))["metadata"]["name"] == "grafana"
    assert terraform("plan", "-detailed-exitcode", folder=tmp_path).returncode == 0


def test_every_block_parses_and_sets_inputs_that_exist() -> None:
    """Also without Terraform."""
    calls: dict[str, Any] = {}
    for text in CONFIGURATION:
        calls |= {name: call for block in parsed(text).get("module", []) for name, call in block.items()}
    for call in calls.values():
        (module,) = re.findall(r"//deploy/terraform/([\w-]+)\?", call["source"])
        assert call.keys() - {"source"} <= variables(module).keys()
    table = [row["in the module"] for row in rows(PAGE) if "in the module" in row]
    assert table
    assert {quoted(cell)[0].split()[0] for cell in table} <= variables("service").keys()


def test_patch_renames_the_claim_and_its_mount(tmp_path: Path) -> None:
    workload = workload_resource(with_patch(tmp_path))
    (application,) = (
        container
        for container in workload["spec"]["template"]["spec"]["containers"]
        if container["name"] == "application"
    )
    mounts = {mount["mountPath"]: mount["name"] for mount in application["volumeMounts"]}
    assert mounts["/usr/src/redmine/files"] == "app-data"
    assert [claim["metadata"]["name"] for claim in workload["spec"]["volumeClaimTemplates"]] == ["app-data", "database"]


def test_commands_are_valid_shell_and_create_the_state_secrets() -> None:
    for command in COMMANDS:
        assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0, command
    for name in ("grafana", "redmine"):
        (secret,) = of_kind(render(DEPLOY / "services" / name), "Secret")
        assert f"kubectl -n services create secret generic {secret['metadata']['name']}\n" in "".join(COMMANDS)
