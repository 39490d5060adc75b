"""The roles in deploy/rbac: each is enough for its mode, and not a word of it is too much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.clients.kubernetes.api import Cluster
from lifecycle.domain.errors import AuthError
from lifecycle.domain.model import KeySpec
from lifecycle.runtime.retry import once
from tests.builders import NAME
from tests.in_cluster import HEADSCALE_NAMESPACE, cluster_at, exec_transport
from tests.pod.rendering import DEPLOY, Document, of_kind, render
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.headscale_cli import HeadscaleCli
from tests.simulators.kubernetes import KubernetesSimulator
from tests.simulators.serve import serve

Rules = list[dict[str, Any]]

MODES = ("exec", "exec-any-pod", "api-key-secret", "keep")
POD_NAMES = {"exec": "headscale-0", "exec-any-pod": "headscale-5d9c7b-x2x4z"}


@cache
def _rendered(mode: str) -> str:
    return yaml.safe_dump_all(render(DEPLOY / "rbac" / mode))


def documents(mode: str) -> list[Document]:
    return list(yaml.safe_load_all(_rendered(mode)))


def role_of(mode: str) -> Document:
    [role] = of_kind(documents(mode), "Role")
    return role


@contextmanager
def a_cluster(mode: str, rules: Sequence[Mapping[str, Any]], *, minor: int = 35) -> Iterator[Cluster]:
    """A cluster that has what the mode is about, and gives these rights."""
    kubernetes = KubernetesSimulator(minor=minor)
    server = HeadscaleSimulator()
    server.add_user("svc")
    server.add_node(NAME, user="svc")
    owner = "StatefulSet" if mode == "exec" else "ReplicaSet"
    kubernetes.add_pod(
        POD_NAMES.get(mode, "headscale-0"), {"headscale": {"headscale": HeadscaleCli(server)}}, owner=owner
    )
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "headscale-api-key", {"key": "hskey-api-x"})
    kubernetes.put_secret("grafana", "grafana-tailscale", {"device_id": "1"})
    kubernetes.allow(role_of(mode)["metadata"]["namespace"], *rules)
    with serve(kubernetes) as url, cluster_at(url, kubernetes) as cluster:
        yield cluster


def run_commands(cluster: Cluster) -> None:
    """All that is ever done through the command line."""
    headscale = HeadscaleWriter(exec_transport(cluster, lambda: datetime.now(UTC)), once())
    [user] = headscale.users()
    [node] = headscale.nodes()
    headscale.delete_node(node, still_ours=lambda _node: True)
    key = headscale.create_pre_auth_key(KeySpec(user, timedelta(hours=1)), now=datetime.now(UTC))
    headscale.expire_pre_auth_key(key, user)


USES: dict[str, Callable[[Cluster], object]] = {
    "exec": run_commands,
    "exec-any-pod": run_commands,
    "api-key-secret": lambda cluster: cluster.token(HEADSCALE_NAMESPACE, "headscale-api-key"),
    "keep": lambda cluster: cluster.secret("grafana", "grafana-tailscale"),
}


def smaller(rules: Rules) -> Iterator[Rules]:
    """The rules with one thing less."""
    for number, rule in enumerate(rules):
        yield rules[:number] + rules[number + 1 :]
        for part in ("verbs", "resources"):
            for thing in rule[part]:
                less = deepcopy(rules)
                less[number][part].remove(thing)
                yield less


def test_every_mode_has_its_folder() -> None:
    assert {folder.name for folder in (DEPLOY / "rbac").iterdir()} == set(MODES)


@pytest.mark.parametrize("mode", MODES)
def test_kubernetes_takes_it(mode: str) -> None:
    for document in documents(mode):
        for version in ("1.25", kubernetes_validate.latest_version().rpartition(".")[0]):
            kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("minor", [34, 35], ids=["1.34", "1.35"])
def test_it_is_enough(mode: str, minor: int) -> None:
    with a_cluster(mode, role_of(mode)["rules"], minor=minor) as cluster:
        USES[mode](cluster)


@pytest.mark.parametrize("mode", MODES)
def test_none_of_it_is_too_much(mode: str) -> None:
    for rules in smaller(role_of(mode)["rules"]):
        with a_cluster(mode, rules) as cluster, pytest.raises(AuthError):
            USES[mode](cluster)


@pytest.mark.parametrize("mode", MODES)
def test_it_is_for_one_object_where_that_can_be_said(mode: str) -> None:
    for rule in role_of(mode)["rules"]:
        assert rule["apiGroups"] == [""]
        assert "*" not in [*rule["verbs"], *rule["resources"]]
        nameable = rule["resources"] != ["pods"] and mode != "exec-any-pod"
        assert len(rule.get("resourceNames", ())) == (1 if nameable else 0)


@pytest.mark.parametrize("mode", MODES)
def test_it_is_bound_to_the_service_accounts_alone(mode: str) -> None:
    [binding] = of_kind(documents(mode), "RoleBinding")
    role = role_of(mode)
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", role["metadata"]["name"])
    assert binding["metadata"]["namespace"] == role["metadata"]["namespace"]
    assert [set(subject) for subject in binding["subjects"]] == [{"kind", "name", "namespace"}]
    assert {subject["kind"] for subject in binding["subjects"]} == {"ServiceAccount"}
