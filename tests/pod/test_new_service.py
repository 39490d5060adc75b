"""Test scripts/new-service, which generates the manifests of a workload from the template."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from tests.pod.rendering import (
    DEPLOY,
    NEWEST_KUBERNETES,
    ROOT,
    claim_names,
    config_map_data,
    containers,
    copy_deploy,
    new_service,
    pod_spec,
    render,
)

DIGEST_SUFFIX = f"@sha256:{'5' * 64}"

VALID_ARGUMENTS = {"name": "wiki", "image": "docker.io/a/wiki:1.2", "port": 8080, "data_path": "/data"}
INVALID_ARGUMENTS: dict[str, list[Any]] = {
    "name": ["Wiki", "wiki-", "4wiki", "w" * 53, ""],
    "image": [
        "docker.io/a/wiki",
        "docker.io/a/wiki:latest",
        "docker.io/a/wiki:",
        "wiki:1.2",
        "a/wiki:1.2",
        "docker.io/a/wiki:1|2",
        "docker.io/a/wiki:1.2\ndocker.io/a/wiki:1.2",
    ],
    "port": [443, 9003, 0, 70000, 80.5],
    "data_path": ["data", "/", "/data/", "/tmp", "/data/../tmp", '/da"ta'],
}
"""By argument: values that the script refuses. The Terraform module `service` refuses them, too."""
VALID_IMAGES = [
    "10.0.0.5:5000/wiki:1.2",
    "registry:5000/wiki:1.2",
    "localhost/wiki:1.2",
    "docker.io/a/wiki:RELEASE.2026-04-22T22-12-26Z",
    "docker.io/a/wiki:1.2rc1_Alpine",
]
"""Unusual images that the script accepts. The Terraform module `service` accepts them, too."""
INVALID_FOR_SCRIPT: dict[str, list[Any]] = {
    # The folder deploy/services/grafana exists already.
    "name": ["_template", "grafana", "true", "false", "null"],
    "image": [
        "registry.example.com:5000/wiki",
        # The tag is a branch, not a version.
        "docker.io/a/wiki:main",
        f"docker.io/a/wiki:latest{DIGEST_SUFFIX}",
        DIGEST_SUFFIX,
        "docker.io/a/wiki@sha256:12",
    ],
    "port": ["http"],
}
"""By argument: further values that the script refuses."""
INVALID_CASES = [
    (name, value) for table in (INVALID_ARGUMENTS, INVALID_FOR_SCRIPT) for name in table for value in table[name]
]


@pytest.mark.parametrize(
    "arguments",
    [
        *((VALID_ARGUMENTS | {name: value}).values() for name, value in INVALID_CASES),
        ("wiki", "docker.io/a/wiki:1.2"),
        ("--into", "/", "wiki", "docker.io/a/wiki:1.2", "8080"),
        # The folder of --into must contain site/site.env.
        ("--into", "/", "--deploy", "x", "wiki", "docker.io/a/wiki:1.2", "8080"),
        ("--into", "/", "--deploy", "a|b", "wiki", "docker.io/a/wiki:1.2", "8080"),
        ("--into",),
    ],
    ids=lambda arguments: " ".join(map(ascii, arguments)),
)
def test_invalid_arguments_are_refused(arguments: Iterable[object], tmp_path: Path) -> None:
    before = sorted(copy_deploy(tmp_path).rglob("*"))
    done = new_service(tmp_path, *map(str, arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("scripts/new-service: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_help_names_every_argument(tmp_path: Path) -> None:
    done = new_service(copy_deploy(tmp_path), "--help")
    assert done.returncode == 0
    for argument in ("NAME", "IMAGE", "PORT", "VOLUME", "--into", "--deploy"):
        assert re.search(rf"^{argument} ", done.stdout, flags=re.MULTILINE)


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize(
    ("volume", "mounts"),
    [
        pytest.param((), {"data": "/data", "application-tmp": "/tmp"}, id="default"),
        pytest.param(("/srv/wiki",), {"data": "/srv/wiki", "application-tmp": "/tmp"}, id="path"),
        pytest.param(("-",), {"application-tmp": "/tmp"}, id="none"),
    ],
)
def test_volume_argument_sets_the_mount_path_of_the_data(
    volume: tuple[str, ...], mounts: dict[str, str], tmp_path: Path
) -> None:
    folder = copy_deploy(tmp_path) / "deploy/services/wiki"
    image = "registry.example.com:5000/a_team/wiki:v1.2.3-alpine"
    done = new_service(tmp_path, "wiki", image, "65535", *volume)
    assert done.returncode == 0, done.stderr
    documents = render(folder)
    for document in documents:
        kubernetes_validate.validate(document, NEWEST_KUBERNETES, strict=True)
    application = containers(pod_spec(documents))["application"]
    assert application["image"] == image
    assert {mount["name"]: mount["mountPath"] for mount in application["volumeMounts"]} == mounts
    assert claim_names(documents) == (["data"] if "data" in mounts else [])
    assert config_map_data(documents, "nginx")["application.conf"] == "proxy_pass http://127.0.0.1:65535;"


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize(
    "image",
    [
        *VALID_IMAGES,
        f"registry.example.com:5000/a_team/wiki:16{DIGEST_SUFFIX}",
        f"registry.example.com:5000/a_team/wiki{DIGEST_SUFFIX}",
        "registry.example.com:5000/a_team/wiki:16",
        "registry.example.com:5000/a_team/wiki:v2",
    ],
)
def test_image_may_have_any_registry_and_version_or_a_digest(image: str, tmp_path: Path) -> None:
    folder = copy_deploy(tmp_path) / "deploy/services/wiki"
    done = new_service(tmp_path, "wiki", image, "8080")
    assert done.returncode == 0, done.stderr
    assert containers(pod_spec(render(folder)))["application"]["image"] == image


def test_name_may_be_a_boolean_of_yaml_1_1(tmp_path: Path) -> None:
    folder = copy_deploy(tmp_path) / "deploy/services/on"
    done = new_service(tmp_path, "on", "docker.io/a/wiki:1.2", "8080")
    assert done.returncode == 0, done.stderr
    for document in render(folder):
        kubernetes_validate.validate(document, NEWEST_KUBERNETES, strict=True)
        assert document["metadata"]["labels"]["app.kubernetes.io/name"] == "on"


def test_script_replaces_every_placeholder_of_the_template() -> None:
    for file in (DEPLOY / "services/_template").iterdir():
        for placeholder in re.findall(r"SERVICE_[A-Z]+", file.read_text()):
            assert placeholder in (ROOT / "scripts/new-service").read_text()
