"""Test that a real API server accepts workloads to which a Kustomize component adds `cleanup` and `dns-watch`.

The workloads have their own tailscale container.
"""

from __future__ import annotations

import pytest

from tests.cluster.api_server import ApiServer
from tests.inject.labelled_workloads import template_of
from tests.inject.with_tailscale import CASES, rendered_workload, workloads_with_tailscale
from tests.pod.rendering import containers


@pytest.mark.parametrize(("name", "variant"), CASES, ids=["-".join(case) for case in CASES])
def test_workload_is_accepted_with_the_component(api_server: ApiServer, name: str, variant: str) -> None:
    created = api_server.create_dry_run(rendered_workload(name, variant))
    expected = {"cleanup", "dns-watch", *containers(template_of(workloads_with_tailscale()[name])["spec"])}
    assert containers(template_of(created)["spec"]).keys() == expected
