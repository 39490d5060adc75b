"""Write Kubernetes Events about a pod to a real API server, with the Role of deploy/rbac/events."""

from __future__ import annotations

import json
import ssl
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from lifecycle.apply import EventRecorder
from lifecycle.clients.kubernetes.events import EventWriter
from lifecycle.domain.events import error, info
from tests.cluster.api_server import ApiServer, RefusedError
from tests.cluster.cluster import manifest
from tests.in_cluster import access_to
from tests.pod.rendering import DEPLOY
from tests.world import Clock, events_named

FLUSH_TIMEOUT_S = 60.0
"""The longest time that a test waits until the recorded Events are written."""

NODE_LOST = error("node.lost", node_id="7", reason="it is gone", advice="Restart the pod.")


@pytest.fixture
def pod(api_server: ApiServer) -> str:
    """The name of a pod with the service account of the Role. An earlier test can have created both."""
    with suppress(RefusedError):
        api_server.kubectl("create", "serviceaccount", "grafana", "-n", "services")
    api_server.kubectl("apply", "-k", DEPLOY / "rbac/events")
    spec = {"serviceAccountName": "grafana", "containers": [{"name": "a", "image": "registry.example.com/a"}]}
    with suppress(RefusedError):
        api_server.create(manifest("Pod", "events-0", "services", spec=spec))
    return "events-0"


def recorder(api_server: ApiServer, clock: Clock, *options: str) -> EventRecorder:
    """Return a recorder with a token of the service account. Options of `kubectl create token` can bind it to a pod."""
    token = api_server.kubectl("create", "token", "grafana", "-n", "services", *options).strip()
    trust = ssl.create_default_context()
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    access = access_to(api_server.url, token, trust=trust)
    return EventRecorder(lambda: EventWriter(access, timeout=timedelta(seconds=30)), now=clock.now)


def test_role_is_sufficient_and_kubectl_shows_the_event(api_server: ApiServer, pod: str, events: list[Any]) -> None:
    """The program shortens long notes, which the API would refuse."""
    event_recorder = recorder(api_server, Clock(), "--bound-object-kind=Pod", f"--bound-object-name={pod}")
    event_recorder.record(NODE_LOST)
    event_recorder.record(info("node.returned", after="gone" + "é" * 2000))
    event_recorder.flush(FLUSH_TIMEOUT_S)
    assert events_named(events, "kubernetes_event.failed") == []
    written = json.loads(api_server.kubectl("get", "events.events.k8s.io", "-n", "services", "-o", "json"))["items"]
    assert sorted(event["reason"] for event in written) == ["NodeLost", "NodeReturned"]
    description = api_server.kubectl("describe", "pod", "-n", "services", pod)
    assert "Restart the pod." in description


def test_token_without_a_pod_is_reported(api_server: ApiServer, pod: str, events: list[Any]) -> None:
    event_recorder = recorder(api_server, Clock())
    event_recorder.record(NODE_LOST)
    event_recorder.flush(FLUSH_TIMEOUT_S)
    [line] = events_named(events, "kubernetes_event.failed")
    assert "KUBERNETES_EVENTS" in line["error"]  # the setting that requires such a token


def test_missing_role_is_reported_with_the_required_rule(api_server: ApiServer, pod: str, events: list[Any]) -> None:
    api_server.kubectl("delete", "rolebinding", "lifecycle-events", "-n", "services")
    event_recorder = recorder(api_server, Clock(), "--bound-object-kind=Pod", f"--bound-object-name={pod}")
    event_recorder.record(NODE_LOST)
    event_recorder.flush(FLUSH_TIMEOUT_S)
    [line] = events_named(events, "kubernetes_event.failed")
    assert 'apiGroups: ["events.k8s.io"]' in line["error"]
