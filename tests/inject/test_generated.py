"""Test that what is generated from containers.yaml is current, and that the containers are those of deploy/base."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifests import generated

from lifecycle.inject.template import CONTAINERS
from tests.inject.refused import deployment, template_of
from tests.inject.samples import injected
from tests.pod.rendering import containers, pod_spec, rendered

FILES = generated()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_generated_file_is_current(path: Path) -> None:
    assert FILES[path].splitlines() == path.read_text().splitlines()


@pytest.mark.parametrize("name", CONTAINERS)
def test_requests_and_limits_are_those_of_the_base(name: str) -> None:
    added = {
        container["name"]: container for container in template_of(injected(deployment()))["spec"]["initContainers"]
    }
    base = containers(pod_spec(rendered("grafana")))
    assert added[name]["resources"] == base[name]["resources"]
