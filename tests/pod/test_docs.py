"""The operator's pages say what the program really says, and name what really is there."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from lifecycle.settings.models import DryRunSettings, every_variable, load
from tests.pod.rendering import (
    DEPLOY,
    OTHERS,
    ROOT,
    SHIPPED,
    configuration,
    containers,
    copied,
    of_kind,
    pod_spec,
    render,
    rendered,
)

PAGES = ("operations.md", "add-a-service.md", "move-from-terraform.md")

VARIES = "…"

ELSEWHERE = {
    "TS_ACCEPT_DNS",
    "TS_AUTH_ONCE",
    "TS_EXTRA_ARGS",
    "TS_STATE_DIR",
    "TS_USERSPACE",
    # Capabilities and constants in capitals that are no variables.
    "NET_ADMIN",
}
"""What stands in capitals in the pages and is no setting of ours."""


def text(page: str) -> str:
    """A page."""
    return (ROOT / "docs" / page).read_text()


@cache
def said() -> tuple[str, ...]:
    """Every text in the program, what varies in it as one character; parts that are joined are joined."""
    return tuple(found for file in (ROOT / "lifecycle").rglob("*.py") for found in _texts(ast.parse(file.read_text())))


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=values):
                yield "".join(str(value.value) if isinstance(value, ast.Constant) else VARIES for value in values)
            case ast.Constant(value=str(value)):
                yield value


def yaml_blocks(page: str) -> list[str]:
    """The pieces of YAML in a page."""
    return re.findall(r"```yaml\n(.*?)```", text(page), flags=re.DOTALL)


def cells(page: str, column: str) -> Iterator[str]:
    """What stands in code in one column of every table of a page that has it."""
    wanted: int | None = None
    for line in text(page).splitlines():
        if not line.startswith("|"):
            wanted = None
            continue
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if wanted is None:
            wanted = row.index(column) if column in row else -1
        elif wanted >= 0:
            yield from re.findall(r"`([^`]+)`", row[wanted])


MESSAGES = sorted(set(cells("operations.md", "message")))


def test_there_are_messages() -> None:
    """So the table was understood."""
    assert len(MESSAGES) > 25


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_is_the_program_s_own(message: str) -> None:
    """Where the page writes …, the program puts something in; all else is to the letter."""
    assert [found for found in said() if message in found]


@pytest.mark.parametrize("page", PAGES)
def test_every_event_is_the_program_s_own(page: str) -> None:
    events = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", text(page)))
    events = {event for event in events if not event.endswith((".com", ".conf", ".env", ".md", ".py", ".yaml"))}
    assert {event for event in events if event not in said()} == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_is_a_setting(page: str) -> None:
    named = set(re.findall(r"\b([A-Z]{2,}(?:_[A-Z]+)+)\b", text(page)))
    assert named <= {*every_variable(), *ELSEWHERE}


@pytest.mark.parametrize("page", PAGES)
def test_every_path_is_there(page: str) -> None:
    """`deploy/services/wiki` is what the page makes."""
    named = set(re.findall(r"\b((?:deploy|docs|scripts|tests)/[\w./-]*\w)", text(page)))
    missing = {path for path in named if not (ROOT / path).exists()}
    assert missing <= {"deploy/services/wiki"}
    for target in re.findall(r"\]\(([\w./-]+\.md)", text(page)):
        assert (ROOT / "docs" / target).exists()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_a_page_has_its_heading(page: str) -> None:
    headings = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text(page), flags=re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", text(page))) <= headings


def test_the_states_of_nodez_are_those_of_the_page() -> None:
    named = {state for row in cells("operations.md", "state") for state in [row]}
    source = (ROOT / "lifecycle/health/status.py").read_text()
    (listed,) = re.findall(r"One word: ([a-z, ]+) or ([a-z]+)\.", source)
    assert named == {*listed[0].split(", "), listed[1]}


def test_every_page_s_service_is_shipped_or_made() -> None:
    named = {found for page in PAGES for found in re.findall(r"deploy/services/([\w-]+)", text(page))}
    assert named <= {*SHIPPED, "wiki"}


def test_terraform_s_state_gets_no_secret() -> None:
    """All that is rendered goes through its loop, but for the Secrets, which the page has made beside it."""
    page = text("move-from-terraform.md")
    (loop,) = re.findall(r"```hcl\n(.*?)```", page, flags=re.DOTALL)
    assert '    if document.kind != "Secret"\n' in loop
    for secret in of_kind(rendered("grafana"), "Secret"):
        metadata = secret["metadata"]
        assert f"kubectl -n {metadata['namespace']} create secret generic {metadata['name']}\n" in page


def test_the_page_s_command_puts_the_operator_s_domain_everywhere(tmp_path: Path) -> None:
    """Or has done so: then it finds nothing, and fails."""
    (command,) = re.findall(r"^ +(grep -rli .+)$", text("add-a-service.md"), flags=re.MULTILINE)
    subprocess.run(["sh", "-c", command], cwd=copied(tmp_path), check=False)
    for folder in (*OTHERS, *(f"services/{service}" for service in SHIPPED)):
        assert not re.search(r"example\.com", yaml.safe_dump_all(render(tmp_path / "deploy" / folder)), re.IGNORECASE)


def test_the_settings_that_the_component_asks_for_are_those_of_the_base() -> None:
    """The page's own kustomization for a workload that is there already."""
    block, _ = yaml_blocks("add-a-service.md")
    named = set(re.findall(r"- ([A-Z_]+)=", block))
    base = {
        line.partition("=")[0]
        for line in (DEPLOY / "base/lifecycle.env").read_text().splitlines()
        if line and not line.startswith("#")
    }
    assert named - {"TS_HOSTNAME"} <= base


def test_the_patch_for_the_modes_through_the_kubernetes_api_gives_dns_watch_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kustomization = copied(tmp_path) / "deploy/services/grafana/kustomization.yaml"
    wanted, ours = yaml.safe_load(yaml_blocks("add-a-service.md")[1]), yaml.safe_load(kustomization.read_text())
    ours["configMapGenerator"][0]["literals"] += wanted["configMapGenerator"][0]["literals"]
    ours["patches"] += wanted["patches"]
    kustomization.write_text(yaml.safe_dump(ours))
    documents = render(kustomization.parent)
    starts = [container["name"] for container in pod_spec(documents)["initContainers"]]
    assert starts == ["cleanup", "tailscale", "dns-watch"]
    mounts = [mount["name"] for mount in containers(pod_spec(documents))["dns-watch"]["volumeMounts"]]
    assert sorted(mounts) == ["lifecycle-secrets", "service-account-token", "tailscale-auth"]
    for name, value in configuration(documents, "lifecycle").items():
        monkeypatch.setenv(name, "" if name.endswith("_FILE") else value)
    monkeypatch.setenv("CLOUDFLARE_API_TOKEN", "made-up")
    monkeypatch.setenv("POD_NAME", "grafana-0")
    assert load(DryRunSettings).access == "exec"


def test_with_a_registry_every_container_of_ours_has_the_name_that_the_page_gives(tmp_path: Path) -> None:
    kustomization = copied(tmp_path) / "deploy/services/grafana/kustomization.yaml"
    (wanted,) = map(yaml.safe_load, yaml_blocks("image.md"))
    kustomization.write_text(yaml.safe_dump(yaml.safe_load(kustomization.read_text()) | wanted))
    images = {
        name: container["image"] for name, container in containers(pod_spec(render(kustomization.parent))).items()
    }
    (image,) = wanted["images"]
    assert images["cleanup"] == images["dns-watch"] == f"{image['newName']}:{image['newTag']}"
    assert f"docker://{images['cleanup']}\n" in text("image.md")


def test_the_pages_are_all_of_them() -> None:
    assert {Path(page).name for page in PAGES} <= {file.name for file in (ROOT / "docs").iterdir()}
