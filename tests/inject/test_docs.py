"""Test the example and the table of annotations in docs/inject.md, and the required settings in site.env."""

from __future__ import annotations

import yaml
from dotenv import dotenv_values

from lifecycle.inject.rules import ANNOTATIONS
from lifecycle.settings.models import InjectSettings
from tests.inject.labelled_workloads import deployment, template_of
from tests.inject.samples import DEPLOY, injected
from tests.pages import ROOT, blocks, quoted, rows

PAGE = (ROOT / "docs/inject.md").read_text()


def test_example_gets_the_hostname_in_its_comment() -> None:
    (block,) = blocks(PAGE, "yaml")
    example = yaml.safe_load(block.text)["template"]["metadata"]
    document = deployment()
    metadata = template_of(document)["metadata"]
    metadata["labels"] |= example["labels"]
    metadata["annotations"] = example["annotations"]
    _cleanup, tailscale, *_ = template_of(injected(document))["spec"]["initContainers"]
    (hostname,) = [variable["value"] for variable in tailscale["env"] if variable["name"] == "TS_HOSTNAME"]
    assert f"# {hostname}" in block.text


def test_every_annotation_has_a_row_in_a_table() -> None:
    documented = [name for row in rows(PAGE) for name in quoted(row.get("annotation", ""))]
    assert documented == list(ANNOTATIONS)


def test_site_env_has_the_settings_that_inject_requires() -> None:
    required = {name.upper() for name, field in InjectSettings.model_fields.items() if field.is_required()}
    assert required <= dotenv_values(DEPLOY / "site/site.env").keys()
