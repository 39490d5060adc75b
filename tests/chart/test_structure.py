"""Test the chart without Helm: its generated files are current, and values.yaml and values.schema.json agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from chart import generated

from lifecycle.settings.models import every_variable
from tests.chart.helm import CHART, SITE

VALUES = yaml.load((CHART / "values.yaml").read_text(), yaml.CSafeLoader)
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def test_generated_files_are_current() -> None:
    files = generated()
    assert [path for path in files if files[path].splitlines() != path.read_text().splitlines()] == []


def paths_in_schema(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Iterate over the paths of the values that a schema describes, such as `prune.enabled`."""
    if "$ref" in schema:
        schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
    properties = schema.get("properties", {})
    if not properties:
        yield path
    for name, inner in properties.items():
        yield from paths_in_schema(inner, f"{path}.{name}" if path else name)


def paths_in_values(values: Any, path: str = "") -> Iterator[str]:
    """Iterate over the paths of all values and of all groups of values."""
    yield path
    if isinstance(values, dict):
        for name, inner in values.items():
            yield from paths_in_values(inner, f"{path}.{name}" if path else name)


def test_every_value_in_the_schema_has_a_default_except_settings() -> None:
    """values.yaml contains only the most important settings."""
    # Helm passes `global` to every chart, so the schema allows it.
    missing = set(paths_in_schema(SCHEMA)) - set(paths_in_values(VALUES)) - {"global"}
    assert {path.rpartition(".")[2] for path in missing if ".settings." in f".{path}"} <= every_variable()
    assert {path for path in missing if ".settings." not in f".{path}"} == set()


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, id="defaults"),
        pytest.param({"settings": {"POLL_INTERVAL": "1m", "MAX_RETRIES": 0, "DNS_IPV6": True}}, id="settings"),
        pytest.param({"prune": {"enabled": True, "namespaces": ["services"]}}, id="prune"),
        pytest.param({"image": {"digest": f"sha256:{'0' * 64}"}}, id="digest"),
        pytest.param({"build": {"maxUnavailable": 1}}, id="one node at a time"),
    ],
)
def test_valid_values_are_accepted(values: dict[str, Any]) -> None:
    jsonschema.validate({**VALUES, **values}, SCHEMA)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"setings": SITE}, id="unknown value"),
        pytest.param({"settings": {"DOMAIN": "example.com"}}, id="unknown setting"),
        pytest.param({"settings": {"CLOUDFLARE_API_TOKEN": "made-up"}}, id="secret"),
        pytest.param({"settings": {"TS_HOSTNAME": "wiki"}}, id="setting of one pod"),
        pytest.param({"image": {"digest": "latest"}}, id="malformed digest"),
        pytest.param({"prune": {"enabled": True, "namespaces": []}}, id="prune in no namespace"),
        pytest.param({"rbac": {"exec": {"enabled": True, "subjects": []}}}, id="role without subject"),
        # Helm removes a value that is null, and does not use its default.
        pytest.param({"prune": {"enabled": True}}, id="null instead of namespaces"),
        pytest.param({"rbac": {"apiKeySecret": {"enabled": True}}}, id="null instead of subjects"),
        pytest.param({"build": {"maxUnavailable": "0%"}}, id="no node at a time"),
        pytest.param({"build": {"import": {"checkInterval": 0}}}, id="interval of 0"),
        pytest.param({"inject": {"policyVersion": "v1alpha1"}}, id="unknown policy version"),
    ],
)
def test_invalid_values_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)
