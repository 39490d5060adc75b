"""Test the chart's files, without Helm: what is generated, and that values and schema agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from chart import generated

from lifecycle.settings.models import every_variable
from tests.chart.helm import CHART, SITE

FILES = generated()
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CHART)))
def test_generated_file_is_current(path: Path) -> None:
    assert FILES[path].splitlines() == path.read_text().splitlines()


def described(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Iterate over the values that a schema describes."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    properties = schema.get("properties", {})
    if not properties:
        yield path
    for name, inner in properties.items():
        yield from described(inner, f"{path}.{name}" if path else name)


def given(values: Any, path: str = "") -> Iterator[str]:
    """Iterate over the paths of values."""
    yield path
    if isinstance(values, dict):
        for name, inner in values.items():
            yield from given(inner, f"{path}.{name}" if path else name)


def test_every_described_value_has_a_default() -> None:
    """Except settings, of which values.yaml has the most important ones."""
    missing = set(described(SCHEMA)) - set(given(VALUES)) - {"global"}
    assert {path.rpartition(".")[2] for path in missing if ".settings." in f".{path}"} <= every_variable()
    assert {path for path in missing if ".settings." not in f".{path}"} == set()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"settings": {"POLL_INTERVAL": "1m", "MAX_RETRIES": 0, "DNS_IPV6": True}},
        {"prune": {"enabled": True, "namespaces": ["services"]}},
        {"image": {"digest": f"sha256:{'0' * 64}"}},
        {"build": {"maxUnavailable": 1}},
    ],
    ids=["defaults", "settings", "prune", "digest", "one node at a time"],
)
def test_valid_values_are_accepted(values: dict[str, Any]) -> None:
    jsonschema.validate({**VALUES, **values}, SCHEMA)


@pytest.mark.parametrize(
    "values",
    [
        {"setings": SITE},
        {"settings": {"DOMAIN": "example.com"}},
        {"settings": {"CLOUDFLARE_API_TOKEN": "made-up"}},
        {"settings": {"TS_HOSTNAME": "wiki"}},
        {"image": {"digest": "latest"}},
        {"prune": {"enabled": True, "namespaces": []}},
        {"rbac": {"exec": {"enabled": True, "subjects": []}}},
        {"build": {"maxUnavailable": "0%"}},
        {"build": {"import": {"checkInterval": 0}}},
        {"inject": {"policyVersion": "v1alpha1"}},
    ],
    ids=[
        "unknown value",
        "unknown setting",
        "secret",
        "setting of one pod",
        "digest",
        "no namespace",
        "no subject",
        "no node at a time",
        "no interval",
        "policy version",
    ],
)
def test_invalid_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)
