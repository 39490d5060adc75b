"""Test that the Kustomize components add the same containers as `lifecycle inject`, to pods of any shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inject.refused import template_of
from tests.inject.samples import (
    NAMES,
    effective,
    injected,
    literals_of,
    own_first,
    prepared_for_component,
    with_component,
    workloads,
)


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", NAMES)
def test_component_adds_the_same_containers_as_inject(name: str, tmp_path: Path) -> None:
    workload = workloads()[name]
    literals = literals_of(workload)
    rendered = with_component(prepared_for_component(workloads()[name]), tmp_path, "with-tailscale", literals)
    (built,) = [document for document in rendered if document["kind"] == workload["kind"]]
    spec = own_first(workload, template_of(built)["spec"])
    assert effective(spec, literals) == effective(template_of(injected(workload))["spec"])
