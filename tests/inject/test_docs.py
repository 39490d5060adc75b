"""Test docs/inject.md: its example is accepted, and it describes every annotation and setting."""

from __future__ import annotations

import io
import re

import yaml
from dotenv import dotenv_values

from lifecycle.inject.rules import ANNOTATIONS
from lifecycle.settings.models import InjectSettings, command_variables
from tests.inject.refused import deployment, template_of
from tests.inject.samples import DEPLOY, injected
from tests.pages import ROOT, blocks, quoted, rows

PAGE = (ROOT / "docs/inject.md").read_text()


def test_example_gets_the_hostname_of_its_comment() -> None:
    (block,) = blocks(PAGE, "yaml")
    example = yaml.safe_load(block.text)["template"]["metadata"]
    document = deployment()
    metadata = template_of(document)["metadata"]
    metadata["labels"] |= example["labels"]
    metadata["annotations"] = example["annotations"]
    tailscale = template_of(injected(document))["spec"]["initContainers"][1]
    (hostname,) = [variable["value"] for variable in tailscale["env"] if variable["name"] == "TS_HOSTNAME"]
    assert f"# {hostname}" in block.text


def test_every_annotation_has_a_row() -> None:
    described = [name for row in rows(PAGE) for name in quoted(row.get("annotation", ""))]
    assert described == list(ANNOTATIONS)


def test_settings_of_the_page_are_those_of_the_shipped_file() -> None:
    shipped = dotenv_values(DEPLOY / "inject/settings.env")
    (shown,) = [
        dotenv_values(stream=io.StringIO(text))
        for block in blocks(PAGE, "sh")
        for text in re.findall(r"<<'END'\n(.*?)^END$", block.text, flags=re.MULTILINE | re.DOTALL)
    ]
    assert shown == shipped
    assert shipped.keys() <= command_variables(InjectSettings).keys()
