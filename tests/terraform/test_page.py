"""Test the configuration and the commands in docs/move-from-terraform.md."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml

from tests.pages import ROOT, blocks, quoted, rows
from tests.pod.rendering import (
    DEPLOY,
    claim_names,
    containers,
    copy_deploy,
    of_kind,
    pod_spec,
    render,
    render_changed,
    workload_resource,
)
from tests.terraform.modules import (
    apply,
    copy_modules,
    initialize,
    input_variables,
    manifests_in_state,
    needs_terraform,
    terraform,
    without_kubernetes_providers,
)

PAGE = (ROOT / "docs/move-from-terraform.md").read_text()
CONFIGURATION = [dedent(block.text) for block in blocks(PAGE, "hcl")]
COMMANDS = [dedent(block.text) for block in blocks(PAGE, "sh")]
OLD_RESOURCES = sorted(set(re.findall(r"from = (\w+)\.(\w+)", "".join(CONFIGURATION))))
"""The types and names of the resources in `removed` blocks on the page, which Terraform should forget."""


def render_with_patch(folder: Path) -> list[dict[str, Any]]:
    """Render the manifests of deploy/services/redmine with the patch on the page."""
    kustomization = copy_deploy(folder) / "deploy/services/redmine/kustomization.yaml"
    (patch,) = (yaml.safe_load(block.text) for block in blocks(PAGE, "yaml"))
    return render_changed(kustomization, {"patches": patch["patches"]})


@pytest.mark.full
@needs_terraform
def test_configuration_creates_new_workloads_and_destroys_nothing(tmp_path: Path) -> None:
    copy_modules(tmp_path)
    (tmp_path / "sources.tar.gz").write_bytes(b"packed")
    (tmp_path / "redmine.yaml").write_text(yaml.safe_dump_all(render_with_patch(tmp_path / "kustomize")))
    # The providers of the old resources are not installed, so `terraform_data` replaces these resources.
    (tmp_path / "old.tf").write_text(
        "".join(f'resource "terraform_data" "{kind}_{name}" {{}}\n' for kind, name in OLD_RESOURCES)
    )
    apply(initialize(tmp_path))

    # The configuration on the page replaces the configuration of the old resources.
    (tmp_path / "old.tf").unlink()
    # The page shows two alternatives of the resource `grafana`, one for each of two providers.
    text = "\n".join(CONFIGURATION).replace('"kubectl_manifest" "grafana"', '"kubectl_manifest" "grafana_by_kubectl"')
    text = re.sub(r"from = (\w+)\.(\w+)", r"from = terraform_data.\1_\2", text)
    text = re.sub(r'"git::https://.*//(deploy/terraform/[\w-]+)\?ref=.*"', r'"./\1"', text)
    (tmp_path / "main.tf").write_text(without_kubernetes_providers(text))
    done = terraform("plan", "-out=plan", "-no-color", folder=initialize(tmp_path))
    assert done.returncode == 0, done.stderr
    changes = json.loads(terraform("show", "-json", "plan", folder=tmp_path).stdout)["resource_changes"]
    actions = {change["address"]: change["change"]["actions"] for change in changes}
    assert [action for action in actions.values() if "delete" in action] == []
    assert [address for address, action in actions.items() if action == ["forget"]] == [
        f"terraform_data.{kind}_{name}" for kind, name in OLD_RESOURCES
    ]
    imported = {change["index"] for change in changes if "importing" in change["change"]}
    assert imported == {"Service/grafana", "ServiceAccount/grafana"}

    state = apply(tmp_path)
    # Terraform would store the content of a Secret in its state, and could reset a Secret that tailscale has changed.
    for name in ("grafana", "grafana_by_kubectl", "redmine", "image_build"):
        assert not of_kind(list(manifests_in_state(state, name).values()), "Secret")
    assert workload_resource(list(manifests_in_state(state, "grafana").values()))["metadata"]["name"] == "grafana"
    # With this flag, 0 means that nothing is left to change.
    assert terraform("plan", "-detailed-exitcode", folder=tmp_path).returncode == 0


def test_table_names_existing_inputs() -> None:
    cells = [row["in the module"] for row in rows(PAGE) if "in the module" in row]
    assert cells
    assert {quoted(cell)[0].split()[0] for cell in cells} <= input_variables("service").keys()


def test_patch_renames_the_claim_and_its_mount(tmp_path: Path) -> None:
    """The page renames the claim `data` to `app-data`."""
    documents = render_with_patch(tmp_path)
    application = containers(pod_spec(documents))["application"]
    mounts = {mount["mountPath"]: mount["name"] for mount in application["volumeMounts"]}
    assert mounts["/usr/src/redmine/files"] == "app-data"
    assert claim_names(documents) == ["app-data", "database"]


def test_commands_are_valid_shell_and_create_both_state_secrets() -> None:
    for command in COMMANDS:
        assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0, command
    for name in ("grafana", "redmine"):
        (secret,) = of_kind(render(DEPLOY / "services" / name), "Secret")
        assert f"kubectl -n services create secret generic {secret['metadata']['name']}\n" in "".join(COMMANDS)
