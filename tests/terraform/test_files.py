"""Test the Terraform files: format, validity, their own tests, and the example in deploy/terraform/examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pod.rendering import containers, environment, manifests_of, pod_spec
from tests.terraform.modules import (
    MODULES,
    apply,
    by_name,
    copy_modules,
    initialize,
    manifests_in_state,
    needs_terraform,
    normalized,
    terraform,
    without_kubernetes_providers,
)


@needs_terraform
def test_every_file_is_formatted() -> None:
    done = terraform("fmt", "-check", "-recursive", "-diff", "-no-color", folder=MODULES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_terraform
@pytest.mark.parametrize("module", ["service", "image-build"])
def test_module_is_valid_and_its_own_tests_pass(module: str, tmp_path: Path) -> None:
    copy_modules(tmp_path)
    (tmp_path / "build" / "sources.tar.gz").write_bytes(b"any content")
    folder = initialize(tmp_path / "deploy" / "terraform" / module)
    for command in ("validate", "test"):
        done = terraform(command, "-no-color", folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.full
@needs_terraform
def test_example_creates_the_objects_of_deploy_services_grafana(tmp_path: Path) -> None:
    copy_modules(tmp_path)
    (tmp_path / "build" / "sources.tar.gz").write_bytes(b"any content")
    folder = tmp_path / "deploy" / "terraform" / "examples" / "grafana"
    (folder / "main.tf").write_text(without_kubernetes_providers((folder / "main.tf").read_text()))
    state = apply(initialize(folder))
    from_kustomize = manifests_of("grafana")
    application = containers(pod_spec(from_kustomize))["application"]
    values = environment(application, from_kustomize)
    # The module inserts the hostname where the Kustomize folder refers to the variable TS_HOSTNAME.
    hostname = values.pop("TS_HOSTNAME")
    application["env"] = [
        {"name": name, "value": value.replace("$(TS_HOSTNAME)", hostname)} for name, value in values.items()
    ]
    assert normalized(manifests_in_state(state, "grafana"), "grafana") == normalized(by_name(from_kustomize), "grafana")
    assert set(manifests_in_state(state, "image_build_namespace")) == {"Namespace/tailscale-lifecycle"}
    kinds = [name.partition("/")[0] for name in manifests_in_state(state, "image_build")]
    assert sorted(kinds) == ["ConfigMap", "DaemonSet"]
