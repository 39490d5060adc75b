"""The Terraform files are formatted and valid, their own tests pass, and the example gives what deploy/services has."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pod.rendering import containers, environment, pod_spec, rendered
from tests.terraform.modules import (
    MODULES,
    applied,
    comparable,
    copied,
    initialized,
    keyed,
    needs_terraform,
    parsed,
    resources,
    terraform,
    with_stand_ins,
)

FILES = sorted([*MODULES.rglob("*.tf"), *MODULES.rglob("*.hcl")])


def test_every_file_parses() -> None:
    """Also without Terraform."""
    assert len(FILES) > 5
    for file in FILES:
        assert parsed(file.read_text()), file


@needs_terraform
def test_every_file_is_formatted() -> None:
    done = terraform("fmt", "-check", "-recursive", "-diff", "-no-color", folder=MODULES)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_terraform
@pytest.mark.parametrize("module", ["service", "image-build"])
def test_module_is_valid_and_its_own_tests_pass(module: str, tmp_path: Path) -> None:
    copied(tmp_path)
    (tmp_path / "build" / "sources.tar.gz").write_bytes(b"packed")
    folder = initialized(tmp_path / "deploy" / "terraform" / module)
    for command in ("validate", "test"):
        done = terraform(command, "-no-color", folder=folder)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.full
@needs_terraform
def test_example_gives_the_objects_of_the_shipped_folder(tmp_path: Path) -> None:
    copied(tmp_path)
    (tmp_path / "build" / "sources.tar.gz").write_bytes(b"packed")
    folder = tmp_path / "deploy" / "terraform" / "examples" / "grafana"
    (folder / "main.tf").write_text(with_stand_ins((folder / "main.tf").read_text()))
    state = applied(initialized(folder))
    shipped = rendered("grafana")
    application = containers(pod_spec(shipped))["application"]
    values = environment(application, shipped)
    # Terraform knows the domain. The shipped folder refers to a variable.
    hostname = values.pop("TS_HOSTNAME")
    application["env"] = [
        {"name": name, "value": value.replace("$(TS_HOSTNAME)", hostname)} for name, value in values.items()
    ]
    assert comparable(resources(state, "grafana"), "grafana") == comparable(keyed(shipped), "grafana")
    assert set(resources(state, "image_build_namespace")) == {"Namespace/tailscale-lifecycle"}
    assert len(resources(state, "image_build")) == 2
