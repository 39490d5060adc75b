"""Test the commands in the Markdown pages: their programs accept them, and the files and names in them exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lifecycle.cli import parse_arguments
from tests.pages import PAGES, ROOT, blocks, prose, relative_path
from tests.pod.rendering import FOLDERS, INJECT_FOLDERS, SHIPPED_WORKLOADS

PROGRAMS = ("kubectl", "lifecycle", "scripts/")


def commands() -> Iterator[tuple[str, str]]:
    """Yield the page and the text of every command in shell blocks, console blocks and inline code."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        lines = re.findall(r"`([^`\n]+)`", prose(text))
        for block in blocks(text, "sh"):
            # A file that `cat <<'END'` writes is not a command.
            lines += re.sub(r"<<'END'\n.*?^END$", "", block.text, flags=re.MULTILINE | re.DOTALL).splitlines()
        for block in blocks(text, "console"):
            lines += re.findall(r"^\$ (.*)$", block.text, flags=re.MULTILINE)
        for line in lines:
            without_comment = line.strip().partition(" #")[0].removeprefix(".venv/bin/").strip()
            command = re.sub(r"( >\S+| &)$", "", without_comment)
            if command.startswith("scripts/") or (command.startswith(PROGRAMS) and " " in command):
                yield relative_path(page), command


COMMANDS = sorted(set(commands()))

TESTED_IN = {
    ("README.md", "yaml"): "tests/test_readme.py",
    ("deploy/README.md", "yaml"): "tests/pod/test_site.py",
    ("deploy/services/argocd/README.md", "yaml"): "tests/pod/rendering.py",
    ("deploy/services/freeipa/README.md", "text"): "tests/pod/test_services.py",
    ("deploy/services/freeipa/README.md", "toml"): "tests/pod/test_services.py",
    ("docs/add-a-service.md", "yaml"): "tests/pod/test_docs.py",
    ("docs/architecture.md", ""): "tests/test_docs.py",
    ("docs/dry-run.md", "text"): "tests/process/test_exec.py",
    ("docs/releasing.md", "text"): "tests/real/test_try_headscale.py",
    ("docs/image.md", "yaml"): "tests/pod/test_docs.py",
    ("docs/ingress.md", "json"): "tests/pod/test_docs.py",
    ("docs/ingress.md", "yaml"): "tests/pod/test_docs.py",
    ("docs/inject.md", "yaml"): "tests/inject/test_docs.py",
    ("docs/move-from-terraform.md", "hcl"): "tests/terraform/test_page.py",
    ("docs/move-from-terraform.md", "yaml"): "tests/terraform/test_page.py",
    ("docs/operations.md", "console"): "tests/process/test_operations_page.py",
    ("docs/platforms.md", "yaml"): "tests/pod/test_docs.py",
}
"""The file that tests the code blocks of a page that have a language other than `sh`."""


def commands_of(program: str) -> list[str]:
    """Return the commands of one program."""
    return sorted({command for _, command in COMMANDS if command.startswith(program)})


def test_the_pages_show_commands_of_every_program() -> None:
    assert {program for program in PROGRAMS if not commands_of(program)} == set()
    assert len(COMMANDS) > 60


def test_every_code_block_has_a_test() -> None:
    """This file tests shell commands. A test of other blocks names their page. Diagrams and Markdown need no test."""
    page_blocks = {(relative_path(page), block.language) for page in PAGES for block in blocks(page.read_text())}
    assert {block for block in page_blocks if block[1] not in {"sh", "mermaid", "markdown"}} == set(TESTED_IN)
    for (page, _), file in TESTED_IN.items():
        assert Path(page).name in (ROOT / file).read_text()


def kubectl_arguments() -> list[list[str]]:
    """Return the arguments of one kubectl command for each combination of a subcommand and flags."""
    arguments: dict[object, list[str]] = {}
    for command in commands_of("kubectl"):
        words = shlex.split(re.sub(r" -n \S+", "", command))[1:]
        # The words after `--` are the command that kubectl runs in a container.
        words = words[: words.index("--")] if "--" in words else words
        flags = frozenset(word.partition("=")[0] for word in words if word.startswith("-"))
        subcommand = tuple(words[: 2 if words[0] in {"create", "rollout"} else 1])
        arguments.setdefault((subcommand, flags), words)
    return [*arguments.values()]


@pytest.mark.parametrize("arguments", kubectl_arguments(), ids=" ".join)
def test_kubectl_accepts_the_subcommand_and_its_flags(arguments: list[str]) -> None:
    """With `--help`, kubectl executes nothing, but still rejects unknown flags."""
    done = subprocess.run(
        [ROOT / ".venv/bin/kubectl", *arguments, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_folders_that_kubectl_applies_exist() -> None:
    """tests/pod renders these folders, and the folders `wiki` and `argocd`, which the reader of a page creates."""
    folders = {name for command in commands_of("kubectl") for name in re.findall(r" (?:-k|kustomize) (\S+)", command)}
    rendered = {f"deploy/{name}" for name in (*FOLDERS, *INJECT_FOLDERS)}
    rendered |= {f"deploy/services/{name}" for name in SHIPPED_WORKLOADS}
    assert folders - rendered == {"argocd", "build/", "deploy/services/wiki"}
    # Rendering `build` needs sources.tar.gz, which scripts/image creates.
    assert yaml.safe_load((ROOT / "build/kustomization.yaml").read_text())["resources"] == ["daemonset.yaml"]


@pytest.mark.parametrize(
    "command", [command for command in commands_of("kubectl") if re.search(r" (-c|-l) |daemonset/", command)]
)
def test_containers_labels_and_daemonsets_of_kubectl_commands_exist(command: str) -> None:
    # After `=`, the value of a label.
    (name,) = re.findall(r"(?: -c |=|daemonset/)([\w-]+)", command)
    manifests = [
        ROOT / "build/daemonset.yaml",
        *ROOT.glob("deploy/base/**/*.yaml"),
        *ROOT.glob("deploy/components/**/*.yaml"),
    ]
    assert any(re.search(rf"name: {name}$", file.read_text(), flags=re.MULTILINE) for file in manifests)


@pytest.mark.parametrize("command", commands_of("lifecycle "))
def test_lifecycle_accepts_the_arguments(command: str) -> None:
    words = shlex.split(command.partition(" | ")[0])[1:]
    if {"--help", "--version"} & set(words):
        with pytest.raises(SystemExit) as exit_:
            parse_arguments(words)
        assert exit_.value.code == 0
    else:
        parse_arguments(words)


KEY_COMMANDS = sorted(
    {match[0] for page in PAGES for match in re.finditer(r"^ *key=\$\(.*\) &&$", page.read_text(), flags=re.MULTILINE)}
)


@pytest.mark.parametrize("command", KEY_COMMANDS)
@pytest.mark.parametrize("key", ["hskey-api-Ab1-_x-Yz", "Ab1-_x.Yz", ""], ids=["new", "old", "none"])
def test_command_that_creates_an_api_key_prints_only_the_key(command: str, key: str) -> None:
    """Headscale can print log lines and a note about a newer version. Without a key, the next command must not run."""
    lines = ["An updated version of Headscale has been found", '{"level":"debug","message":"Setting"}', key, '{"a":1}']
    output = "\n".join(filter(None, lines))
    script = f"headscale() {{ printf '%s' '{output}'; }}; kubectl() {{ headscale; }}\n{command} echo \"<$key>\""
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == (f"<{key}>\n" if key else "")


@pytest.mark.parametrize("command", commands_of("scripts/"))
def test_script_exists_and_documents_the_options(command: str) -> None:
    """The options are documented in the comments of the script."""
    script, *words = command.split()
    usage = "\n".join(line for line in (ROOT / script).read_text().splitlines() if line.startswith("#"))
    options = [word for word in words if word.startswith("--")]
    if script == "scripts/test":
        # scripts/test passes its options to pytest, and conftest.py defines them.
        usage += (ROOT / "tests/conftest.py").read_text()
        assert [word for word in words if word.startswith("tests") and not (ROOT / word).exists()] == []
    assert [word for word in options if word not in usage] == []
