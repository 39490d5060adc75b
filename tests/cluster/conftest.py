"""A real API server with the admission policies of deploy/inject."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from lifecycle.inject.rules import LABEL
from tests.cluster.api_server import ApiServer, Refused, missing
from tests.inject.refused import labelled, pod, template_of
from tests.inject.samples import DEPLOY, LOGIN_SERVER, SETTINGS, workloads
from tests.pod.rendering import render
from tests.real.programs import eventually


@pytest.fixture(scope="session")
def api_server() -> Iterator[ApiServer]:
    """A running API server. Its admission policies are in force in the namespace "services"."""
    if reason := missing():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="api-") as folder, ApiServer(Path(folder)) as server:
        server.create_namespace("services", {LABEL: "enabled"})
        server.create_namespace("elsewhere", {})
        for workload in workloads().values():
            if account := template_of(workload)["spec"].get("serviceAccountName"):
                server.kubectl("create", "serviceaccount", account, "-n", "services")
        server.kubectl("apply", "-f", "-", text=policies(server))
        set_settings(server)
        # A policy takes effect some seconds after it was created.
        eventually(lambda: _refuses(server), "a refusal", timeout_s=60)
        eventually(lambda: "initContainers" in server.create(pod())["spec"] or None, "containers", timeout_s=60)
        yield server


def policies(server: ApiServer) -> str:
    """Return what `kubectl apply -k deploy/inject` applies, in the version that the server has."""
    folder = DEPLOY / "inject" if server.version >= (1, 36) else DEPLOY / "inject-v1beta1"
    return yaml.safe_dump_all(render(folder))


def set_settings(server: ApiServer, **settings: str | None) -> None:
    """Write the settings of all workloads; None removes one."""
    data = SETTINGS | {"LOGIN_SERVER": LOGIN_SERVER} | settings
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "tailscale-lifecycle", "namespace": "tailscale-lifecycle-inject"},
        "data": {name: value for name, value in data.items() if value is not None},
    }
    with suppress(Refused):
        server.kubectl("delete", "configmap", "-n", "tailscale-lifecycle-inject", "tailscale-lifecycle")
    server.kubectl("create", "-f", "-", text=yaml.safe_dump(config))


def _refuses(server: ApiServer) -> bool:
    try:
        server.create(labelled(pod(), inject="yes"))
    except Refused:
        return True
    return False
