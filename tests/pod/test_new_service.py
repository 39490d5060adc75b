"""Test scripts/new-service, which generates the manifests of a workload from the template."""

from __future__ import annotations

import re
from pathlib import Path

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


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("Wiki", "docker.io/a/wiki:1.2", "8080"), id="name-in-capitals"),
        pytest.param(("wiki-", "docker.io/a/wiki:1.2", "8080"), id="name-with-a-trailing-hyphen"),
        pytest.param(("w" * 53, "docker.io/a/wiki:1.2", "8080"), id="name-too-long"),
        pytest.param(("4wiki", "docker.io/a/wiki:1.2", "8080"), id="name-invalid-for-a-kubernetes-service"),
        pytest.param(("", "docker.io/a/wiki:1.2", "8080"), id="name-empty"),
        pytest.param(("_template", "docker.io/a/wiki:1.2", "8080"), id="name-of-the-template"),
        pytest.param(("grafana", "docker.io/a/wiki:1.2", "8080"), id="name-of-an-existing-folder"),
        pytest.param(("wiki", "docker.io/a/wiki", "8080"), id="image-without-tag"),
        pytest.param(("wiki", "registry.example.com:5000/wiki", "8080"), id="image-with-registry-port-but-no-tag"),
        pytest.param(("wiki", "docker.io/a/wiki:latest", "8080"), id="tag-latest"),
        pytest.param(("wiki", "docker.io/a/wiki:main", "8080"), id="tag-of-a-branch"),
        pytest.param(("wiki", "docker.io/a/wiki:", "8080"), id="tag-empty"),
        pytest.param(("wiki", f"docker.io/a/wiki:latest{DIGEST_SUFFIX}", "8080"), id="digest-with-tag-latest"),
        pytest.param(("wiki", DIGEST_SUFFIX, "8080"), id="digest-without-image"),
        pytest.param(("wiki", "docker.io/a/wiki@sha256:12", "8080"), id="digest-too-short"),
        pytest.param(("wiki", "wiki:1.2", "8080"), id="image-without-registry"),
        pytest.param(("wiki", "a/wiki:1.2", "8080"), id="image-with-path-but-no-registry"),
        pytest.param(("wiki", "docker.io/a/wiki:1|2", "8080"), id="image-with-invalid-character"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2\ndocker.io/a/wiki:1.2", "8080"), id="image-with-newline"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "http"), id="port-not-a-number"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "443"), id="port-of-nginx"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "70000"), id="port-too-high"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "8080", "data"), id="volume-relative"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "8080", "/"), id="volume-root"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "8080", "/tmp"), id="volume-reserved"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2", "8080", "/data/../tmp"), id="volume-with-dots"),
        pytest.param(("wiki", "docker.io/a/wiki:1.2"), id="too-few-arguments"),
        pytest.param(("--into", "/", "wiki", "docker.io/a/wiki:1.2", "8080"), id="into-without-deploy"),
        pytest.param(("--into", "/", "--deploy", "x", "wiki", "docker.io/a/wiki:1.2", "8080"), id="into-without-site"),
        pytest.param(("--into", "/", "--deploy", "a|b", "wiki", "docker.io/a/wiki:1.2", "8080"), id="deploy-invalid"),
        pytest.param(("--into",), id="into-without-folder"),
    ],
)
def test_invalid_arguments_are_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    before = sorted(copy_deploy(tmp_path).rglob("*"))
    done = new_service(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("scripts/new-service: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_help_names_every_argument(tmp_path: Path) -> None:
    done = new_service(copy_deploy(tmp_path), "--help")
    assert done.returncode == 0
    for argument in ("NAME", "IMAGE", "PORT", "VOLUME", "--into", "--deploy"):
        assert re.search(rf"^{argument} ", done.stdout, flags=re.MULTILINE)


@pytest.mark.default_cases(1)
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


@pytest.mark.default_cases(1)
@pytest.mark.parametrize(
    "reference",
    [f":16{DIGEST_SUFFIX}", DIGEST_SUFFIX, ":16", ":v2"],
    ids=["tag-and-digest", "digest", "number", "version"],
)
def test_image_argument_may_have_a_tag_or_a_digest(reference: str, tmp_path: Path) -> None:
    folder = copy_deploy(tmp_path) / "deploy/services/wiki"
    image = f"registry.example.com:5000/a_team/wiki{reference}"
    done = new_service(tmp_path, "wiki", image, "8080")
    assert done.returncode == 0, done.stderr
    assert containers(pod_spec(render(folder)))["application"]["image"] == image


def test_script_replaces_every_placeholder_of_the_template() -> None:
    for file in (DEPLOY / "services/_template").iterdir():
        for placeholder in re.findall(r"SERVICE_[A-Z]+", file.read_text()):
            assert placeholder in (ROOT / "scripts/new-service").read_text()
