"""Test that the Kustomize components add the same containers as `lifecycle inject`."""

from __future__ import annotations

from pathlib import Path

import pytest

from lifecycle.inject.rules import HOSTNAME, INIT_CONTAINERS, LABEL, STATE_SECRET
from lifecycle.inject.template import CONTAINERS, VOLUMES
from lifecycle.settings.models import DryRunSettings, command_variables
from tests.inject.labelled_workloads import template_of
from tests.inject.samples import (
    NAMES,
    comparable,
    in_required_order,
    injected,
    literals_of,
    prepared_for_component,
    workloads,
    write_kustomization,
)
from tests.pod.rendering import WORKLOADS, config_map_data, manifests_of, render, workload_resource

SETTING_NAMES = command_variables(DryRunSettings)


@pytest.mark.max_cases_without_full(3)
@pytest.mark.parametrize("name", NAMES)
def test_component_adds_the_same_containers_as_inject(name: str, tmp_path: Path) -> None:
    workload = workloads()[name]
    literals = literals_of(workload)
    document = prepared_for_component(workloads()[name])
    rendered = render(write_kustomization(tmp_path, [document], "with-tailscale", literals))
    (result,) = [document for document in rendered if document["kind"] == workload["kind"]]
    spec = in_required_order(workload, template_of(result)["spec"])
    assert comparable(spec, literals) == comparable(template_of(injected(workload))["spec"])


@pytest.mark.parametrize("name", sorted({*WORKLOADS} - {"freeipa"}))
def test_inject_creates_the_same_pod_as_the_manifests_in_deploy_services(name: str) -> None:
    """FreeIPA is excluded, because its tailscale container gets its network device from a device plugin."""
    documents = manifests_of(name)
    literals, workload = config_map_data(documents, "lifecycle"), workload_resource(documents)
    settings = {key: value for key, value in literals.items() if key in SETTING_NAMES}
    expected = comparable(template_of(workload)["spec"], literals)
    template = template_of(workload)
    for field, names in (("initContainers", CONTAINERS), ("volumes", VOLUMES)):
        template["spec"][field] = [item for item in template["spec"][field] if item["name"] not in names]
    template["metadata"]["labels"][LABEL] = "true"
    # Open WebUI has an init container of its own, which runs before the added containers.
    template["metadata"]["annotations"] = {
        HOSTNAME: name,
        STATE_SECRET: literals["TS_KUBE_SECRET"],
        INIT_CONTAINERS: "before",
    }
    added = injected(workload, settings)
    assert comparable(template_of(added)["spec"]) == expected
