"""Test that the Terraform module image-build creates the same objects as `kubectl kustomize build/`."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.pod.rendering import ROOT, render
from tests.terraform.modules import Manifests, apply, by_name, needs_terraform, normalized, planning_errors, root_module

SOURCES = b"\x1f\x8bnot text"
"""Binary data that the tests use instead of the packed sources."""


@pytest.mark.full
@needs_terraform
def test_module_creates_the_objects_of_kustomize(tmp_path: Path) -> None:
    sources = tmp_path / "sources.tar.gz"
    sources.write_bytes(SOURCES)
    inputs: dict[str, dict[str, Any]] = {
        "default": {"sources": str(sources)},
        "other_base": {"sources": str(sources), "environment": {"BASE_IMAGE": "localhost/debian:stable"}},
        "disabled": {"sources": str(sources), "enabled": False},
    }
    outputs = apply(root_module(tmp_path / "root", inputs, "image-build"))["outputs"]
    shutil.copytree(ROOT / "build", tmp_path / "build")
    shutil.copy(sources, tmp_path / "build")
    kustomized = by_name(render(tmp_path / "build"))
    manifests: Manifests = outputs["default"]["value"]
    # The names of these objects do not start with the name of a workload.
    assert normalized(manifests, workload="") == normalized(kustomized, workload="")
    assert outputs["disabled"]["value"] == {}
    assert base64.b64decode(manifests["ConfigMap/tailscale-lifecycle-build"]["binaryData"]["sources.tar.gz"]) == SOURCES

    def build_environment(name: str) -> dict[str, str | None]:
        pod = outputs[name]["value"]["DaemonSet/tailscale-lifecycle-image"]["spec"]["template"]["spec"]
        return {variable["name"]: variable.get("value") for variable in pod["initContainers"][0]["env"]}

    assert build_environment("other_base") == build_environment("default") | {"BASE_IMAGE": "localhost/debian:stable"}


@needs_terraform
def test_error_about_missing_sources_names_the_command_that_creates_them(tmp_path: Path) -> None:
    inputs: dict[str, dict[str, Any]] = {"default_path": {}, "given_path": {"sources": "/nonexistent"}}
    messages = [text for _, text in planning_errors(root_module(tmp_path / "root", inputs, "image-build"))]
    assert len(messages) == 2
    assert all("scripts/image --sources build/sources.tar.gz" in text for text in messages)
