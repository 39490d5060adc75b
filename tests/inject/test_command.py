"""Test the command line of `lifecycle inject`: its input, settings, output and exit status."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lifecycle import cli
from lifecycle.domain.errors import EXIT_USAGE
from lifecycle.inject.rules import FALSE_VALUES
from lifecycle.inject.template import CONTAINERS
from tests.inject.labelled_workloads import annotated, deployment, template_of
from tests.inject.samples import LOGIN_SERVER, Document

ENV_FILE = f"DOMAIN_NAME=example.com\nLOGIN_SERVER={LOGIN_SERVER}\nHEADSCALE_USER=services\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with settings in `.env` and a manifest."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(ENV_FILE)
    (tmp_path / "web.yaml").write_text(yaml.safe_dump(deployment()))
    return tmp_path


def variables(document: Document, container: str) -> dict[str, str]:
    """Return the variables of a container that was added."""
    containers = {item["name"]: item for item in template_of(document)["spec"]["initContainers"]}
    return {variable["name"]: variable.get("value", "") for variable in containers[container]["env"]}


def inject_files(capfd: pytest.CaptureFixture[str], *arguments: str) -> list[Document]:
    """Run the command, and return the documents that it prints."""
    assert cli.run(cli.parse_arguments(["inject", *arguments])) == 0
    return list(yaml.safe_load_all(capfd.readouterr().out))


def test_documents_are_printed_in_the_order_of_the_files(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "other.yaml").write_text("kind: ConfigMap")
    first, second, third = inject_files(capfd, "web.yaml", "other.yaml", "web.yaml")
    assert [item["name"] for item in template_of(first)["spec"]["initContainers"]] == list(CONTAINERS)
    assert second == {"kind": "ConfigMap"}
    assert third == first


@pytest.mark.parametrize("arguments", [[], ["-"]], ids=["none", "dash"])
def test_standard_input_is_read(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = json.dumps(deployment()).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    (document,) = inject_files(capfd, *arguments)
    assert variables(document, "cleanup")["TS_HOSTNAME"] == "web.example.com"


def test_settings_are_written_into_the_manifest(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTHKEY_TAGS", "tag:from-environment")
    monkeypatch.setenv("LIFECYCLE_IMAGE", "registry.example.com/lifecycle:1")
    monkeypatch.setenv("HEADSCALE_API_KEY_FILE", "/run/secrets/lifecycle/other")
    (document,) = inject_files(capfd, "web.yaml")
    for name in ("cleanup", "dns-watch"):
        environment = variables(document, name)
        assert environment["HEADSCALE_USER"] == "services"
        assert environment["AUTHKEY_TAGS"] == "tag:from-environment"
        assert environment["HEADSCALE_API_KEY_FILE"] == "/run/secrets/lifecycle/other"
    assert variables(document, "tailscale")["TS_EXTRA_ARGS"] == f"--login-server={LOGIN_SERVER}"
    images = {item["name"]: item["image"] for item in template_of(document)["spec"]["initContainers"]}
    assert images["cleanup"] == images["dns-watch"] == "registry.example.com/lifecycle:1"


def test_secrets_and_proxies_of_this_machine_are_not_written_into_the_manifest(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "made-up-token")
    monkeypatch.setenv("HEADSCALE_API_KEY", "made-up-key")
    monkeypatch.setenv("HTTPS_PROXY", "http://laptop:3128")
    monkeypatch.setenv("TS_HOSTNAME", "laptop.example.com")
    (document,) = inject_files(capfd, "web.yaml")
    assert not {"CLOUDFLARE_API_TOKEN", "HEADSCALE_API_KEY", "HTTPS_PROXY"} & variables(document, "cleanup").keys()
    assert variables(document, "cleanup")["TS_HOSTNAME"] == "web.example.com"
    # A proxy in .env is for the pods.
    (folder / ".env").write_text(f"{ENV_FILE}HTTPS_PROXY=http://cluster:3128\n")
    (document,) = inject_files(capfd, "web.yaml")
    assert variables(document, "cleanup")["HTTPS_PROXY"] == "http://cluster:3128"


@pytest.mark.parametrize("access", ["HEADSCALE_ACCESS=exec", "HEADSCALE_API_KEY_SECRET=headscale-key"])
def test_access_through_kubernetes_needs_the_token_and_no_key_file(
    access: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / ".env").write_text(f"{ENV_FILE}{access}\n")
    (document,) = inject_files(capfd, "web.yaml")
    for container in template_of(document)["spec"]["initContainers"]:
        assert "tailscale-lifecycle-token" in {mount["name"] for mount in container["volumeMounts"]}
    assert "HEADSCALE_API_KEY_FILE" not in variables(document, "dns-watch")


@pytest.mark.parametrize(
    ("value", "has_token"),
    [("true", True), ("True", True), ("yes", True), *((value, False) for value in (*FALSE_VALUES, "No"))],
)
def test_kubernetes_events_need_the_token(
    value: str, has_token: bool, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / ".env").write_text(f"{ENV_FILE}KUBERNETES_EVENTS={value}\n")
    (document,) = inject_files(capfd, "web.yaml")
    mounts = {
        container["name"]: {mount["name"] for mount in container["volumeMounts"]}
        for container in template_of(document)["spec"]["initContainers"]
    }
    for command in ("cleanup", "dns-watch"):
        assert ("tailscale-lifecycle-token" in mounts[command]) == has_token
        assert "HEADSCALE_API_KEY_FILE" in variables(document, command)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LOGIN_SERVER", ""),
        ("LOGIN_SERVER", "http://headscale.headscale.svc:8080"),
        ("LOGIN_SERVER", "headscale.example.com"),
        ("POLL_INTERVAL", "soon"),
    ],
)
def test_invalid_setting_is_reported(name: str, value: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in ENV_FILE.splitlines() if not line.startswith(name)]
    (folder / ".env").write_text("\n".join([*lines, f"{name}={value}"]))
    assert cli.run(cli.parse_arguments(["inject", "web.yaml"])) == EXIT_USAGE
    output = capfd.readouterr()
    assert output.out == ""
    (problem,) = [json.loads(line) for line in output.err.splitlines()]
    assert (problem["event"], problem["error"].partition(":")[0]) == ("settings.invalid", name)


def test_refusal_names_the_workload_and_nothing_is_written(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.yaml").write_text(yaml.safe_dump(annotated(deployment(), hostname="Web")))
    assert cli.run(cli.parse_arguments(["inject", "web.yaml", "bad.yaml"])) == EXIT_USAGE
    output = capfd.readouterr()
    assert output.out == ""
    (problem,) = [json.loads(line) for line in output.err.splitlines()]
    assert problem["event"] == "manifest.refused"
    assert "Deployment web" in problem["error"]


@pytest.mark.parametrize("file", ["missing", "folder", "binary"])
def test_file_that_cannot_be_read_is_named(file: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if file == "folder":
        (folder / "x.yaml").mkdir()
    elif file == "binary":
        (folder / "x.yaml").write_bytes(b"\xff\xfe\xfa")
    assert cli.run(cli.parse_arguments(["inject", "x.yaml"])) == EXIT_USAGE
    assert "x.yaml" in json.loads(capfd.readouterr().err)["error"]


def test_dry_run_is_a_usage_error(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        cli.run(cli.parse_arguments(["--dry-run", "inject", "web.yaml"]))
    assert exit_status.value.code == EXIT_USAGE
    assert "inject" in capfd.readouterr().err


def test_process_uses_utf_8_in_every_locale_and_leaves_its_own_output_unchanged(folder: Path) -> None:
    command = [sys.executable, "-m", "lifecycle", "inject"]
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    output = ((folder / "web.yaml").read_text() + "---\n# \u20ac\nkind: ConfigMap\n").encode()
    outputs = []
    for _ in range(2):
        done = subprocess.run(command, input=output, capture_output=True, check=True, cwd=folder, env=environment)
        output = done.stdout
        outputs.append(output.decode())
    once, twice = outputs
    assert "name: dns-watch" in once
    assert "# \u20ac\n" in once
    assert twice == once
