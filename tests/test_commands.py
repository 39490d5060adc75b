"""Every command line of the pages is one that its program understands, and names what is there."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lifecycle.cli import arguments_of
from tests.pod.rendering import ROOT, render

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("deploy/**/*.md")])
OURS = ("kubectl", "lifecycle", "python", "scripts/")


def commands() -> Iterator[tuple[str, str]]:
    """Page and command line: each of the blocks for a shell, and each that stands in a sentence."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        lines = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for block in re.findall(r"^ *```sh\n(.*?)```", text, flags=re.MULTILINE | re.DOTALL):
            lines += re.sub(r"<<'END'\n.*?^END$", "", block, flags=re.MULTILINE | re.DOTALL).splitlines()
        lines += re.findall(r"^```console\n\$ (.*)$", text, flags=re.MULTILINE)
        for line in lines:
            command = re.sub(r"( >\S+| &)$", "", line.strip().partition(" #")[0].removeprefix(".venv/bin/").strip())
            if command.startswith("scripts/") or (command.startswith(OURS) and " " in command):
                yield str(page.relative_to(ROOT)), command


COMMANDS = sorted(set(commands()))

TRIED_IN = {
    ("README.md", "console"): "tests/process/test_readme.py",
    ("README.md", "text"): "tests/process/test_exec.py",
    ("README.md", "yaml"): "tests/test_readme.py",
    ("docs/add-a-service.md", "yaml"): "tests/pod/test_docs.py",
    ("docs/architecture.md", ""): "tests/test_readme.py",
    ("docs/image.md", ""): "tests/image/test_build.py",
    ("docs/image.md", "yaml"): "tests/pod/test_docs.py",
    ("docs/move-from-terraform.md", "hcl"): "tests/pod/test_docs.py",
}
"""Who tries what stands in the pages' other blocks: page and language, file."""


def of(program: str) -> list[str]:
    """The command lines of one program."""
    return sorted({command for _, command in COMMANDS if command.startswith(program)})


def test_the_pages_were_understood() -> None:
    few = {program: len(of(program)) for program in OURS if len(of(program)) < 2}
    assert few == {}
    assert len(COMMANDS) > 60


def test_every_block_of_the_pages_is_tried() -> None:
    """Commands are tried here, and a drawing is none of anybody's."""
    there = {
        (str(page.relative_to(ROOT)), language)
        for page in PAGES
        for language in re.findall(r"^ *```(\w*)\n.*?^ *```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    }
    assert {block for block in there if block[1] not in {"sh", "mermaid"}} == set(TRIED_IN)
    for (page, _), file in TRIED_IN.items():
        assert Path(page).name in (ROOT / file).read_text()


@pytest.mark.parametrize("command", of("kubectl"))
def test_kubectl_knows_the_subcommand_and_its_flags(command: str) -> None:
    """Asked for help, it complains of what it does not know all the same."""
    words = shlex.split(command)
    own = words[: words.index("--")] if "--" in words else words
    done = subprocess.run([ROOT / ".venv/bin/kubectl", *own[1:], "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [command for command in of("kubectl") if re.search(r" (-k|kustomize) ", command)])
def test_a_folder_that_kubectl_is_given_renders(command: str) -> None:
    """`wiki` is what the page makes, as tests/pod do too."""
    (folder,) = re.findall(r" (?:-k|kustomize) (\S+)", command)
    if folder == "build/":
        assert yaml.safe_load((ROOT / folder / "kustomization.yaml").read_text())["resources"] == ["daemonset.yaml"]
    elif folder != "deploy/services/wiki":
        assert render(ROOT / folder)


@pytest.mark.parametrize(
    "command", [command for command in of("kubectl") if re.search(r" (-c|-l) |daemonset/", command)]
)
def test_kubectl_is_asked_for_what_the_manifests_name(command: str) -> None:
    (name,) = re.findall(r"(?: -c |=|daemonset/)([\w-]+)", command)
    manifests = [
        ROOT / "build/daemonset.yaml",
        *ROOT.glob("deploy/base/*.yaml"),
        *ROOT.glob("deploy/components/**/*.yaml"),
    ]
    assert any(re.search(rf"name: {name}$", file.read_text(), flags=re.MULTILINE) for file in manifests)


@pytest.mark.parametrize("command", [*of("lifecycle "), *of("python -m lifecycle")])
def test_our_own_commands_take_the_arguments(command: str) -> None:
    words = shlex.split(command.removeprefix("python -m "))[1:]
    with contextlib.redirect_stdout(io.StringIO()):
        if {"--help", "--version"} & set(words):
            with pytest.raises(SystemExit) as exit_:
                arguments_of(words)
            assert exit_.value.code == 0
        else:
            arguments_of(words)


@pytest.mark.parametrize("command", of("scripts/"))
def test_a_script_is_there_and_says_that_it_takes_the_arguments(command: str) -> None:
    """Options stand in its usage; what comes after them names what it is to work on."""
    script, *words = command.split()
    told = "\n".join(line for line in (ROOT / script).read_text().splitlines() if line.startswith("#"))
    options = [word for word in words if word.startswith("--")]
    if script == "scripts/test":
        told += (ROOT / "tests/conftest.py").read_text()
        assert [word for word in words if word.startswith("tests") and not (ROOT / word).exists()] == []
    assert [word for word in options if word not in told] == []
