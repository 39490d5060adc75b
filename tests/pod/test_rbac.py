"""Test that each Role in deploy/rbac grants exactly the permissions that the program needs for one mode.

A mode is a use of the Kubernetes API, for example to run Headscale's CLI in its pod.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.clients.kubernetes.api import Cluster
from lifecycle.clients.kubernetes.events import EventWriter
from lifecycle.domain.errors import AuthError
from lifecycle.domain.model import KeySpec
from lifecycle.domain.pod_events import PodEvent
from lifecycle.runtime.clock import utc_now
from lifecycle.runtime.retry import no_retries
from tests.builders import NAME
from tests.in_cluster import HEADSCALE_NAMESPACE, access_to, exec_transport
from tests.pod.rendering import DEPLOY, Document, manifests_of, of_kind
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.headscale_cli import HeadscaleCli
from tests.simulators.kubernetes import KubernetesSimulator
from tests.simulators.serve import serve

Rules = list[dict[str, Any]]

MODES = sorted(folder.name for folder in (DEPLOY / "rbac").iterdir())
"""The modes, which are the names of the folders in deploy/rbac.

`exec` and `exec-any-pod` run Headscale's CLI in its pod. `api-key-secret` reads Headscale's API key from a Secret.
`keep` is for NODE_POLICY=keep, which reads the Secret with tailscale's state. `events` writes Kubernetes Events.
"""
POD_NAMES = {"exec": "headscale-0", "exec-any-pod": "headscale-5d9c7b-x2x4z"}
"""By mode: the name of Headscale's pod. A StatefulSet has fixed pod names, a Deployment has not."""


def role_of(mode: str) -> Document:
    [role] = of_kind(manifests_of(f"rbac/{mode}"), "Role")
    return role


@contextmanager
def simulated_cluster(mode: str, rules: Sequence[Mapping[str, Any]], *, minor: int = 35) -> Iterator[Cluster]:
    """Serve a simulated cluster with the resources that a mode uses. Yield a client that has the rules' permissions."""
    kubernetes = KubernetesSimulator(minor=minor)
    server = HeadscaleSimulator()
    server.add_user("svc")
    server.add_node(NAME, user="svc")
    owner = "StatefulSet" if mode == "exec" else "ReplicaSet"
    kubernetes.add_pod(
        POD_NAMES.get(mode, "headscale-0"), {"headscale": {"headscale": HeadscaleCli(server)}}, owner=owner
    )
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "headscale-api-key", {"key": "hskey-api-x"})
    kubernetes.put_secret("services", "grafana-tailscale", {"device_id": "1"})
    kubernetes.account = "system:serviceaccount:services:grafana"
    kubernetes.allow(role_of(mode)["metadata"]["namespace"], *rules)
    client = EventWriter if mode == "events" else Cluster
    with serve(kubernetes) as url:
        access = access_to(url, kubernetes.token)
        with access.client:
            yield client(access, timeout=timedelta(seconds=10))


def run_commands(cluster: Cluster) -> None:
    """Run every operation of the Headscale client through the CLI in the pod."""
    headscale = HeadscaleWriter(exec_transport(cluster, lambda: datetime.now(UTC)), no_retries())
    [user] = headscale.users()
    [node] = headscale.nodes()
    headscale.delete_node(node, is_still_owned=lambda _node: True)
    key = headscale.create_pre_auth_key(KeySpec(user, timedelta(hours=1)), now=utc_now)
    headscale.expire_pre_auth_key(key, user)


def write_event(cluster: Cluster) -> None:
    """Create an Event."""
    assert isinstance(cluster, EventWriter)
    cluster.create_event(PodEvent("Normal", "RecordCreated", "x"), datetime.now(UTC))


OPERATIONS: dict[str, Callable[[Cluster], object]] = {
    "exec": run_commands,
    "exec-any-pod": run_commands,
    "api-key-secret": lambda cluster: cluster.headscale_api_key(HEADSCALE_NAMESPACE, "headscale-api-key"),
    "keep": lambda cluster: cluster.secret("services", "grafana-tailscale"),
    "events": write_event,
}
"""By mode: a function that sends all requests for which the mode needs permissions."""


def reduced_rules(rules: Rules) -> Iterator[Rules]:
    """Iterate over copies of the rules with one rule, verb or resource removed."""
    for number, rule in enumerate(rules):
        yield rules[:number] + rules[number + 1 :]
        for field in ("verbs", "resources"):
            for entry in rule[field]:
                reduced = deepcopy(rules)
                reduced[number][field].remove(entry)
                yield reduced


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("minor", [34, 35], ids=["1.34", "1.35"])
def test_role_is_sufficient(mode: str, minor: int) -> None:
    """For `exec` through a WebSocket, Kubernetes requires the verb `get`, and from 1.35 on also `create`."""
    with simulated_cluster(mode, role_of(mode)["rules"], minor=minor) as cluster:
        OPERATIONS[mode](cluster)


@pytest.mark.parametrize("mode", MODES)
def test_role_has_no_unneeded_permission(mode: str) -> None:
    for rules in reduced_rules(role_of(mode)["rules"]):
        with simulated_cluster(mode, rules) as cluster, pytest.raises(AuthError):
            OPERATIONS[mode](cluster)


@pytest.mark.parametrize("mode", MODES)
def test_rules_name_one_resource_where_rbac_allows_it(mode: str) -> None:
    for rule in role_of(mode)["rules"]:
        assert rule["apiGroups"] == ["events.k8s.io" if mode == "events" else ""]
        # Pods are listed by labels or have random names, and RBAC cannot limit creating Events to a name.
        nameable = rule["resources"] not in (["pods"], ["events"]) and mode != "exec-any-pod"
        assert len(rule.get("resourceNames", ())) == (1 if nameable else 0)


@pytest.mark.parametrize("mode", MODES)
def test_role_is_bound_to_service_accounts_only(mode: str) -> None:
    [binding] = of_kind(manifests_of(f"rbac/{mode}"), "RoleBinding")
    role = role_of(mode)
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", role["metadata"]["name"])
    assert binding["metadata"]["namespace"] == role["metadata"]["namespace"]
    assert [set(subject) for subject in binding["subjects"]] == [{"kind", "name", "namespace"}]
    assert {subject["kind"] for subject in binding["subjects"]} == {"ServiceAccount"}
