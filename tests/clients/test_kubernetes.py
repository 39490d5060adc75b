"""Tests of the client of the Kubernetes API: Secrets, pods, commands in pods (exec), errors and credentials."""

from __future__ import annotations

import base64
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from kubernetes.config import incluster_config

from lifecycle.clients.http import MAX_RESPONSE_BYTES
from lifecycle.clients.kubernetes.access import Access, find_access
from lifecycle.clients.kubernetes.api import Cluster, Pod, RbacRule
from lifecycle.clients.trust import private_trust
from lifecycle.domain.errors import ApiError, AuthError, ConfigError, ResponseError, TransientError
from tests.clients.kubeconfigs import a_kubeconfig
from tests.clients.servers import all_texts_of
from tests.in_cluster import DESCRIPTION as CLUSTER_DESCRIPTION
from tests.in_cluster import (
    HEADSCALE_NAMESPACE,
    HEADSCALE_POD,
    MAY_EXEC,
    MAY_LIST_PODS,
    access_to,
    cluster_at,
    may_read,
)
from tests.process.cluster import Authority
from tests.simulators import faults
from tests.simulators.faults import Fault
from tests.simulators.headscale_cli import Finished
from tests.simulators.kubernetes import SERVICE_ACCOUNT, V4, V5, ExecFault, KubernetesSimulator
from tests.simulators.serve import serve

# The required settings of each credential plugin in a kubeconfig, except its command.
PLUGIN = {"apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never"}

SHORT_TIMEOUT_S = 1.5
# For calls that must not reach their time-out, even on a busy machine.
LONG_TIMEOUT_S = 30.0

# More than one websocket frame of the simulator, and not a multiple of a frame.
LARGE_OUTPUT_BYTES = 5 * 1024 * 1024 + 7

# Python refuses to convert more than 4,300 digits to an integer.
HUGE_EXIT_STATUS = json.dumps(
    {"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "1" * 5000}]}}
).encode()


# The next three functions simulate programs in the container.


def echo(argv: Sequence[str]) -> Finished:
    """Write each argument on a line."""
    return Finished(stdout="\n".join(argv[1:]).encode(), stderr=b"also on stderr\n")


def fail(argv: Sequence[str]) -> Finished:
    """Exit with the status in the argument."""
    return Finished(int(argv[1]), stdout=b"partial output", stderr=b"no\n")


def flood(argv: Sequence[str]) -> Finished:
    """Write at least as many bytes as the argument says."""
    return Finished(stdout=b"0123456789abcdef" * (int(argv[1]) // 16 + 1))


@pytest.fixture
def kubernetes() -> KubernetesSimulator:
    """A cluster with one pod of a StatefulSet, and all permissions that the program can need."""
    kubernetes = KubernetesSimulator()
    kubernetes.add_pod("headscale-0", {"headscale": {"echo": echo, "fail": fail, "flood": flood}, "proxy": {}})
    kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC, may_read("api-key"))
    return kubernetes


@pytest.fixture
def url(kubernetes: KubernetesSimulator) -> Iterator[str]:
    with serve(kubernetes) as url:
        yield url


@pytest.fixture
def cluster(kubernetes: KubernetesSimulator, url: str) -> Iterator[Cluster]:
    with cluster_at(url, kubernetes) as cluster:
        yield cluster


@pytest.fixture
def short_timeout_cluster(kubernetes: KubernetesSimulator, url: str) -> Iterator[Cluster]:
    with cluster_at(url, kubernetes, timeout_s=SHORT_TIMEOUT_S) as cluster:
        yield cluster


def headscale_pod(cluster: Cluster) -> Pod:
    """Return the pod of the StatefulSet."""
    [pod] = cluster.pods(HEADSCALE_NAMESPACE, "app.kubernetes.io/name=headscale")
    return pod


def run(cluster: Cluster, *argv: str) -> Any:
    """Run a command in the container `headscale` of the pod."""
    return cluster.run(headscale_pod(cluster), "headscale", argv)


Call = Callable[[Cluster], object]

# Each kind of call, and a part of the path of its request.
CALLS: list[Any] = [
    pytest.param(lambda cluster: cluster.secret(HEADSCALE_NAMESPACE, "api-key"), "/secrets/", id="secret"),
    pytest.param(lambda cluster: cluster.pods(HEADSCALE_NAMESPACE, "app=x"), "/pods", id="pods"),
    pytest.param(lambda cluster: run(cluster, "echo"), "/exec", id="exec"),
]


def failure(call: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as raised:
        call()
    return raised.value


# --- Secrets -------------------------------------------------------------------------------------------


def test_secret_is_returned_unchanged(kubernetes: KubernetesSimulator, cluster: Cluster) -> None:
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", {"key": "hskey-api-1", "empty": "", "text": "ä\n"})
    assert cluster.secret(HEADSCALE_NAMESPACE, "api-key") == {
        "key": b"hskey-api-1",
        "empty": b"",
        "text": "ä\n".encode(),
    }


def test_missing_secret_differs_from_an_empty_secret(kubernetes: KubernetesSimulator, cluster: Cluster) -> None:
    assert cluster.secret(HEADSCALE_NAMESPACE, "api-key") is None
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", {})
    assert cluster.secret(HEADSCALE_NAMESPACE, "api-key") == {}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.html(404), id="html"),
        pytest.param(faults.answer(404, "404 page not found", content_type="text/plain"), id="text"),
        pytest.param(faults.answer(404, '{"reason": "NotFound"}'), id="json-without-kind"),
        pytest.param(faults.answer(404, '{"kind": "Status", "reason": "Gone"}'), id="other-reason"),
        pytest.param(faults.answer(404), id="empty"),
    ],
)
def test_404_of_a_proxy_does_not_mean_a_missing_secret(
    fault: Fault, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    kubernetes.faults.add(fault)
    assert type(failure(lambda: cluster.secret(HEADSCALE_NAMESPACE, "api-key"))) is TransientError


A_SECRET = {"kind": "Secret", "metadata": {"name": "api-key"}}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(json.dumps(A_SECRET | {"data": {"key": "not base64!"}}), id="invalid-base64"),
        pytest.param(json.dumps(A_SECRET | {"data": {"key": "ääää"}}, ensure_ascii=False), id="not-ascii"),
        pytest.param(json.dumps(A_SECRET | {"data": ["a"]}), id="list-of-values"),
        pytest.param(json.dumps(A_SECRET | {"data": {"key": 7}}), id="number"),
        pytest.param(json.dumps(A_SECRET | {"metadata": {"name": "other"}}), id="other-secret"),
        pytest.param(json.dumps(A_SECRET | {"kind": "ConfigMap"}), id="other-kind"),
        pytest.param("{}", id="empty-object"),
        pytest.param("[]", id="list"),
        pytest.param("null", id="null"),
        pytest.param("", id="empty"),
        pytest.param("<html>", id="html"),
    ],
)
def test_malformed_secret_is_an_error(body: str, kubernetes: KubernetesSimulator, cluster: Cluster) -> None:
    kubernetes.faults.add(faults.answer(200, body), times=None)
    assert type(failure(lambda: cluster.secret(HEADSCALE_NAMESPACE, "api-key"))) is ResponseError
    assert type(failure(lambda: cluster.headscale_api_key(HEADSCALE_NAMESPACE, "api-key"))) is ResponseError


@pytest.mark.parametrize(
    ("values", "reference"),
    [
        ({"key": "hskey-api-1"}, "api-key"),
        ({"key": "hskey-api-1\n"}, "api-key"),
        ({"key": "hskey-api-1", "other": "x"}, "api-key/key"),
    ],
)
def test_headscale_api_key_is_read_from_the_secret(
    values: dict[str, str], reference: str, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    """If a Secret has only one key, the reference to the Secret can omit the name of the key."""
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", values)
    assert cluster.headscale_api_key(HEADSCALE_NAMESPACE, reference) == "hskey-api-1"


@pytest.mark.parametrize(
    ("values", "reference", "problem"),
    [
        pytest.param(None, "api-key", "Secret headscale/api-key", id="no-secret"),
        pytest.param({}, "api-key", "0 keys", id="no-keys"),
        pytest.param({"a": "secret-a", "b": "secret-b"}, "api-key", "api-key/KEY", id="several-keys"),
        pytest.param({"a": "secret-a"}, "api-key/b", "keys: a", id="other-key"),
        pytest.param({"a": "secret a"}, "api-key", "headscale/api-key", id="with-space"),
        pytest.param({"a": " \n"}, "api-key", "headscale/api-key", id="blank"),
        pytest.param({"a": "secret-ä"}, "api-key/a", "headscale/api-key/a", id="not-ascii"),
    ],
)
def test_missing_or_malformed_headscale_api_key_is_an_auth_error(
    values: dict[str, str] | None, reference: str, problem: str, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    """The error must not be a NotFoundError, because to callers this means that a Headscale node is missing."""
    if values is not None:
        kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", values)
    error = failure(lambda: cluster.headscale_api_key(HEADSCALE_NAMESPACE, reference))
    assert type(error) is AuthError
    assert str(error).startswith("HEADSCALE_API_KEY_SECRET: ")
    assert problem in str(error)
    # If there is a value, it contains "secret". Messages contain the word only as "Secret" or "SECRET".
    assert "secret" not in str(error)


# --- Pods ----------------------------------------------------------------------------------------------


def test_pods_are_selected_by_labels(kubernetes: KubernetesSimulator, cluster: Cluster) -> None:
    kubernetes.add_pod("other-0", {"headscale": {}}, labels={"app": "headscale", "tier": "x y"})
    kubernetes.add_pod("elsewhere-0", {"headscale": {}}, namespace="elsewhere")
    assert [pod.name for pod in cluster.pods(HEADSCALE_NAMESPACE, "app=headscale,tier=x y")] == ["other-0"]
    assert [pod.name for pod in cluster.pods(HEADSCALE_NAMESPACE, "app.kubernetes.io/name=headscale")] == [
        "headscale-0"
    ]
    assert cluster.pods(HEADSCALE_NAMESPACE, "app=nothing") == []


@pytest.mark.parametrize(
    ("changes", "is_ready"),
    [
        ({}, True),
        ({"ready": False}, False),
        ({"phase": "Pending"}, False),
        ({"phase": "Succeeded"}, False),
        ({"is_terminating": True}, False),
    ],
)
def test_readiness_of_a_pod(
    changes: dict[str, Any], is_ready: bool, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    kubernetes.add_pod("a", {"first": {}, "second": {}}, labels={"app": "x"}, **changes)
    [pod] = cluster.pods(HEADSCALE_NAMESPACE, "app=x")
    assert (pod.ready, pod.containers) == (is_ready, ("first", "second"))


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        ("PodList", None),
        ("PodList", {}),
        ("PodList", [{}]),
        ("PodList", [7]),
        ("PodList", "[]"),
        ("List", []),
        ("", []),
    ],
    ids=str,
)
def test_malformed_list_of_pods_is_an_error(
    kind: str, items: Any, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    kubernetes.faults.add(faults.answer(200, json.dumps({"kind": kind, "items": items})))
    assert type(failure(lambda: cluster.pods(HEADSCALE_NAMESPACE, "app=x"))) is ResponseError


@pytest.mark.parametrize("value", [7, None, "\ud800"], ids=["number", "null", "lone surrogate"])
@pytest.mark.parametrize("field", ["namespace", "name", "uid", "creationTimestamp", "container"])
def test_pod_with_a_value_that_is_no_text_is_an_error(
    field: str, value: Any, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    pod: Any = {
        "metadata": {"namespace": "vpn", "name": "a", "uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": value if field == "container" else "headscale"}]},
    }
    pod["metadata"][field] = value
    kubernetes.faults.add(faults.answer(200, json.dumps({"kind": "PodList", "items": [pod]})))
    assert type(failure(lambda: cluster.pods(HEADSCALE_NAMESPACE, "app=x"))) is ResponseError


def test_missing_path_of_pods_does_not_mean_a_missing_node(kubernetes: KubernetesSimulator, cluster: Cluster) -> None:
    """The error must not be a NotFoundError, because to callers this means that a Headscale node is missing."""
    kubernetes.faults.add(faults.answer(404, '{"kind": "Status", "reason": "NotFound"}'))
    assert type(failure(lambda: cluster.pods(HEADSCALE_NAMESPACE, "app=x"))) is ResponseError


# --- Commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subprotocols", [(V5, V4), (V4,), (V5,)], ids=["both", "v4", "v5"])
def test_arguments_are_passed_unchanged_in_either_subprotocol(subprotocols: tuple[str, ...]) -> None:
    """Headscale's image has no shell, so no shell may interpret the arguments."""
    arguments = ["a b", "*", "$HOME", "--expiration=1h", "ä&b=c", ""]
    kubernetes = KubernetesSimulator(subprotocols=subprotocols)
    kubernetes.add_pod("headscale-0", {"headscale": {"echo": echo}})
    kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
    with serve(kubernetes) as url, cluster_at(url, kubernetes) as cluster:
        output = run(cluster, "echo", *arguments)
    assert (output.exit_status, output.stdout.decode().split("\n")) == (0, arguments)
    assert output.stderr == b"also on stderr\n"
    assert kubernetes.used_subprotocols == [subprotocols[0]]


@pytest.mark.parametrize("status", [1, 2, 126, 255])
def test_exit_status_is_returned(status: int, cluster: Cluster) -> None:
    output = run(cluster, "fail", str(status))
    assert (output.exit_status, output.stdout, output.stderr) == (status, b"partial output", b"no\n")
    assert "partial output" not in repr(output), "the output can contain secrets"


def test_output_of_megabytes_is_complete(cluster: Cluster) -> None:
    output = run(cluster, "flood", str(LARGE_OUTPUT_BYTES))
    assert output.stdout == flood(["flood", str(LARGE_OUTPUT_BYTES)]).stdout


def test_output_beyond_the_limit_is_refused(cluster: Cluster) -> None:
    error = failure(lambda: run(cluster, "flood", str(MAX_RESPONSE_BYTES + 1)))
    assert type(error) is ResponseError
    assert "32 MiB" in str(error)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(ExecFault(sent_bytes=0), id="cut-before-the-output"),
        pytest.param(ExecFault(sent_bytes=4), id="cut-in-the-output"),
        pytest.param(ExecFault(status=b""), id="closed-without-a-status"),
        pytest.param(ExecFault(status=b"[" * 100_000), id="deeply-nested-status"),
        pytest.param(ExecFault(status=HUGE_EXIT_STATUS), id="huge-exit-status"),
        pytest.param(ExecFault(start_error="container is not running"), id="container-stopped"),
    ],
)
def test_command_without_an_exit_status_is_a_transient_error(
    fault: ExecFault, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    kubernetes.add_exec_fault(fault)
    assert type(failure(lambda: run(cluster, "echo", "all of it"))) is TransientError
    assert run(cluster, "echo", "all of it").stdout == b"all of it"


@pytest.mark.max_cases_without_full(1)
@pytest.mark.parametrize("fault", [ExecFault(hang=True), ExecFault(stall=True)], ids=["no-output", "half-a-frame"])
def test_hanging_command_ends_with_the_time_out(
    fault: ExecFault, kubernetes: KubernetesSimulator, short_timeout_cluster: Cluster
) -> None:
    kubernetes.add_exec_fault(fault)
    error = failure(lambda: run(short_timeout_cluster, "echo", "some words that make a frame"))
    assert type(error) is TransientError
    assert f"{SHORT_TIMEOUT_S:g} s" in str(error)
    assert run(short_timeout_cluster, "echo", "again").stdout == b"again"


def test_pod_that_ended_after_it_was_listed_is_a_transient_error(
    kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    refusal = {"kind": "Status", "message": "cannot exec in a stopped or completed pod; current phase is Succeeded"}
    kubernetes.faults.add(faults.answer(400, json.dumps(refusal)), path="/exec")
    assert type(failure(lambda: run(cluster, "echo"))) is TransientError


def test_missing_program_is_a_permanent_error(cluster: Cluster) -> None:
    error = failure(lambda: run(cluster, "headscale"))
    assert type(error) is ResponseError
    assert "executable file not found in $PATH" in str(error)


def test_missing_program_with_crun_is_a_permanent_error(kubernetes: KubernetesSimulator, cluster: Cluster) -> None:
    message = "executable file `headscale` not found in $PATH: No such file or directory"
    kubernetes.add_exec_fault(ExecFault(start_error=message))
    assert type(failure(lambda: run(cluster, "echo"))) is ResponseError


def test_missing_container_is_a_permanent_error(cluster: Cluster) -> None:
    pod = headscale_pod(cluster)
    error = failure(lambda: cluster.run(pod, "other", ["echo"]))
    assert type(error) is ResponseError
    assert "container other" in str(error)


def test_replaced_pod_does_not_mean_a_missing_node(kubernetes: KubernetesSimulator, cluster: Cluster) -> None:
    """The error must not be a NotFoundError, because to callers this means that a Headscale node is missing."""
    pod = headscale_pod(cluster)
    kubernetes.delete_pod(kubernetes.pods[0])
    error = failure(lambda: cluster.run(pod, "headscale", ["echo"]))
    assert type(error) is TransientError


# --- Faults of any request -----------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "path"), CALLS)
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(faults.html(500), TransientError, id="500"),
        pytest.param(faults.html(503), TransientError, id="503"),
        pytest.param(faults.too_many_requests(1), TransientError, id="429"),
        pytest.param(faults.html(404), TransientError, id="404"),
        pytest.param(faults.drop(), TransientError, id="connection-lost"),
        pytest.param(faults.hang(), TransientError, id="hangs"),
        pytest.param(faults.answer(403, "{}"), AuthError, id="403"),
        pytest.param(faults.answer(422, "{}"), ResponseError, id="422"),
        pytest.param(faults.answer(302, headers={"location": "http://[bad"}), ResponseError, id="malformed-redirect"),
        pytest.param(faults.answer(200, headers={"content-encoding": "gzip"}), ResponseError, id="compressed"),
    ],
)
def test_kind_of_error_for_each_failure(
    call: Call,
    path: str,
    fault: Fault,
    kind: type[ApiError],
    kubernetes: KubernetesSimulator,
    short_timeout_cluster: Cluster,
) -> None:
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", {"key": "x"})
    # "/pods" is also in the path of a request that runs a command, but only a list has a query directly after it.
    kubernetes.faults.add(fault, path=path + (r"\?" if path == "/pods" else ""))
    error = failure(lambda: call(short_timeout_cluster))
    assert type(error) is kind
    assert error.upstream == "Kubernetes"
    call(short_timeout_cluster)


@pytest.mark.parametrize(("call", "path"), CALLS)
def test_refusal_by_a_proxy_gives_no_advice_on_permissions(
    call: Call, path: str, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    kubernetes.faults.add(faults.html(403), path=path)
    error = failure(lambda: call(cluster))
    assert "in front of Kubernetes" in str(error)
    assert "permission" not in str(error)


@pytest.mark.parametrize(("call", "path"), CALLS)
@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_redirect_is_not_followed(
    call: Call, path: str, scheme: str, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    """Otherwise, the client would send the credentials to the new address."""
    elsewhere = KubernetesSimulator()
    with serve(elsewhere) as url:
        target = url.replace("http", scheme, 1) + "/elsewhere"
        kubernetes.faults.add(faults.answer(302, headers={"location": target}), path=path)
        failure(lambda: call(cluster))
    assert elsewhere.requests == []


@pytest.mark.parametrize(("call", "path"), CALLS)
def test_refused_token_is_an_auth_error(
    call: Call, path: str, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    kubernetes.rotate_token()
    error = failure(lambda: call(cluster))
    assert type(error) is AuthError
    assert CLUSTER_DESCRIPTION in str(error)


@pytest.mark.parametrize(("call", "path"), CALLS)
def test_no_error_contains_the_token(
    call: Call, path: str, kubernetes: KubernetesSimulator, short_timeout_cluster: Cluster
) -> None:
    with_token = faults.answer(500, kubernetes.token, content_type="text/plain")
    for fault in (faults.html(500), with_token, faults.drop(), faults.answer(401), faults.answer(403), faults.hang()):
        kubernetes.faults.add(fault, path=path)
        assert kubernetes.token not in all_texts_of(failure(lambda: call(short_timeout_cluster)))


@pytest.mark.parametrize("is_trusted", [True, False], ids=["ca-of-the-cluster", "other-ca"])
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda cluster: cluster.run(HEADSCALE_POD, "headscale", ["echo"]), id="exec"),
        pytest.param(lambda cluster: cluster.secret(HEADSCALE_NAMESPACE, "api-key"), id="get"),
    ],
)
def test_only_a_server_with_a_certificate_of_the_clusters_ca_gets_requests(
    call: Call, is_trusted: bool, kubernetes: KubernetesSimulator, tmp_path: Path
) -> None:
    """Otherwise, the client would send the service account's token to another server."""
    for name in ("cluster", "other"):
        (tmp_path / name).mkdir()
    cluster_authority, other_authority = Authority(tmp_path / "cluster"), Authority(tmp_path / "other")
    with serve(kubernetes, tls=cluster_authority.server) as url:
        trust = private_trust((cluster_authority if is_trusted else other_authority).certificate)
        access = access_to(url, kubernetes.token, trust=trust)
        with access.client:
            cluster = Cluster(access, timeout=timedelta(seconds=10))
            if is_trusted:
                call(cluster)
            else:
                assert type(failure(lambda: call(cluster))) is TransientError
    assert bool(kubernetes.requests) is is_trusted


# --- Permissions ---------------------------------------------------------------------------------------


def refusal(call: Callable[[], object]) -> AuthError | None:
    """Return the error if RBAC refuses a call."""
    try:
        call()
    except AuthError as error:
        return error
    return None


def rule_in(error: ApiError) -> tuple[str, dict[str, Any]]:
    """Return the namespace and the RBAC rule that an error message advises. The rule in the message must be YAML."""
    assert SERVICE_ACCOUNT in str(error)
    match = re.search(r"Role in namespace (\S+) with this rule: (- .*)$", str(error))
    assert match is not None, str(error)
    [rule] = yaml.safe_load(match[2])
    return match[1], rule


@pytest.mark.parametrize("minor", [34, 35], ids=["1.34", "1.35"])
@pytest.mark.parametrize("owner", ["StatefulSet", "ReplicaSet"])
def test_advised_rules_grant_exactly_the_missing_permissions(minor: int, owner: str) -> None:
    """An error for a missing permission contains the RBAC rule that grants the permission.

    Up to Kubernetes 1.34, exec over a websocket needs only the verb `get`. From 1.35 on, it also needs `create`.
    """
    kubernetes = KubernetesSimulator(minor=minor)
    kubernetes.add_pod("headscale-0", {"headscale": {"echo": echo}}, owner=owner)
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", {"key": "x"})
    advised = []
    with serve(kubernetes) as url, cluster_at(url, kubernetes) as cluster:
        for call in (lambda: cluster.secret(HEADSCALE_NAMESPACE, "api-key"), lambda: run(cluster, "echo")):
            while (error := refusal(call)) is not None:
                namespace, rule = rule_in(error)
                assert rule not in advised, "the advised rule was not sufficient"
                advised.append(rule)
                kubernetes.allow(namespace, rule)
    names = {"resourceNames": ["headscale-0"]} if owner == "StatefulSet" else {}
    assert advised == [may_read("api-key"), MAY_LIST_PODS, MAY_EXEC | names]


def test_advised_rule_for_an_object_without_a_namespace_needs_a_cluster_role() -> None:
    advice = RbacRule("", "selfsubjectreviews", ("create",), group="authentication.k8s.io").advice("")
    assert "ClusterRole" in advice
    assert "namespace" not in advice


# --- Access --------------------------------------------------------------------------------------------


def access(
    *, needed_for: str = "HEADSCALE_ACCESS", may_use_kubeconfig: bool = False, timeout_s: float = SHORT_TIMEOUT_S
) -> Access:
    timeout = timedelta(seconds=timeout_s)
    return find_access(needed_for=needed_for, may_use_kubeconfig=may_use_kubeconfig, timeout=timeout)


def use_kubeconfig(monkeypatch: pytest.MonkeyPatch, path: Path, **changes: Any) -> None:
    """Write a kubeconfig, and set KUBECONFIG to its path."""
    path.write_text(yaml.safe_dump(a_kubeconfig("https://127.0.0.1:1", **changes)))
    monkeypatch.setenv("KUBECONFIG", str(path))


@pytest.fixture
def _outside_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables that the kubelet sets in each pod."""
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_outside_of_a_cluster")
@pytest.mark.parametrize(
    ("setting", "alternative"),
    [
        ("HEADSCALE_ACCESS", "HEADSCALE_URL and HEADSCALE_API_KEY"),
        ("HEADSCALE_API_KEY_SECRET", "HEADSCALE_API_KEY"),
        ("NODE_POLICY", "NODE_POLICY=replace"),
    ],
)
def test_missing_access_is_reported_with_the_setting_and_an_alternative(setting: str, alternative: str) -> None:
    with pytest.raises(ConfigError, match=f"^{setting} .*{alternative}"):
        access(needed_for=setting)


@pytest.fixture
def service_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A service account's folder in a pod, without its files."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    return tmp_path


@pytest.mark.usefixtures("service_account")
def test_unmounted_token_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="automountServiceAccountToken"):
        access()


def test_undecodable_token_is_a_configuration_error(service_account: Path) -> None:
    (service_account / "token").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="service account's token"):
        access()


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "https://127.0.0.1:443"), ("fd00::1", "https://[fd00::1]:443")]
)
def test_address_and_token_of_the_service_account_are_used(
    host: str, url: str, monkeypatch: pytest.MonkeyPatch, service_account: Path
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    Authority(service_account).certificate.rename(service_account / "ca.crt")
    (service_account / "token").write_text("first")
    in_cluster = access()
    [value] = in_cluster.authorization().values()
    assert in_cluster.client.base_url == httpx.URL(url)
    assert value.split() == ["bearer", "first"]
    assert in_cluster.credentials == "service account's token"


def test_no_proxy_is_used_in_the_cluster(service_account: Path) -> None:
    Authority(service_account).certificate.rename(service_account / "ca.crt")
    (service_account / "token").write_text("first")
    in_cluster = find_access(
        needed_for="HEADSCALE_ACCESS", may_use_kubeconfig=True, timeout=timedelta(seconds=1), proxy_for=pytest.fail
    )
    assert in_cluster.proxy is None


@pytest.mark.parametrize("content", ["second", "second\n"])
def test_token_is_read_for_each_request(content: str, service_account: Path) -> None:
    """The kubelet replaces the token. When it is read again must not depend on the clock, which can be set back."""
    Authority(service_account).certificate.rename(service_account / "ca.crt")
    (service_account / "token").write_text("first")
    in_cluster = access()
    (service_account / "token").write_text(content)
    assert list(in_cluster.authorization().values()) == ["bearer second"]


@pytest.mark.parametrize("content", [b"", b"\xff"], ids=["empty", "not text"])
def test_token_that_cannot_be_read_again_is_a_transient_error(content: bytes, service_account: Path) -> None:
    Authority(service_account).certificate.rename(service_account / "ca.crt")
    (service_account / "token").write_text("first")
    in_cluster = access()
    (service_account / "token").write_bytes(content)
    with pytest.raises(TransientError, match="token"):
        in_cluster.authorization()


@pytest.mark.parametrize(
    ("host", "port"),
    [("https://10.43.0.1", "443"), ("10.43.0.1:443", "443"), ("10.43.0.1", "https"), ("10.43.0.1", "99999")],
)
def test_malformed_address_of_the_server_is_a_configuration_error(
    host: str, port: str, monkeypatch: pytest.MonkeyPatch, service_account: Path
) -> None:
    """The variables can be set in a manifest, for example if a pod cannot use the cluster's Service."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    Authority(service_account).certificate.rename(service_account / "ca.crt")
    (service_account / "token").write_text("token")
    with pytest.raises(ConfigError, match="KUBERNETES_SERVICE_HOST"):
        access()


# --- The kubeconfig ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_outside_of_a_cluster")
@pytest.mark.parametrize(
    ("cluster", "user", "problem"),
    [
        pytest.param({"proxy-url": "socks5://127.0.0.1:1"}, {}, "proxy-url", id="SOCKS proxy"),
        pytest.param({"proxy-url": "127.0.0.1:1"}, {}, "proxy-url", id="proxy without a scheme"),
        pytest.param({"proxy-url": "http://127.0.0.1:70000"}, {}, "proxy-url", id="proxy with a port out of range"),
        pytest.param({"insecure-skip-tls-verify": True}, {}, "insecure-skip-tls-verify", id="unverified server"),
        pytest.param({"certificate-authority": "/no/such/file"}, {}, "kubeconfig", id="missing authority"),
        pytest.param({"server": "tcp://10.0.0.1:6443"}, {}, "The server of context", id="server with another scheme"),
        pytest.param({"server": "10.0.0.1:6443"}, {}, "The server of context", id="server without a scheme"),
        pytest.param({"server": "https://k8s.example:port"}, {}, "The server of context", id="malformed port"),
        pytest.param({"server": "https://k8s.example:70000"}, {}, "The server of context", id="port out of range"),
        pytest.param({"server": "https://[::1"}, {}, "The server of context", id="malformed address"),
        pytest.param({"server": "https://me:s3cr3t@k8s.example"}, {}, "a password", id="server with a password"),
        pytest.param({"server": "https://xn--"}, {}, "The server of context", id="malformed international name"),
        pytest.param({"tls-server-name": ".example.com"}, {}, "is malformed", id="malformed TLS server name"),
        pytest.param({"tls-server-name": 1}, {}, "is malformed", id="TLS server name that is a number"),
        pytest.param({}, {"exec": PLUGIN | {"command": "/no/such/plugin"}}, "user me", id="missing plugin"),
        pytest.param({}, {"exec": PLUGIN | {"command": "false"}}, "user me", id="failing plugin"),
    ],
)
def test_unusable_kubeconfig_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any], problem: str
) -> None:
    use_kubeconfig(monkeypatch, tmp_path / "config", cluster=cluster, user=user)
    with pytest.raises(ConfigError, match=problem) as caught:
        access(may_use_kubeconfig=True)
    assert "s3cr3t" not in all_texts_of(caught.value)


@pytest.mark.usefixtures("_outside_of_a_cluster")
@pytest.mark.parametrize("token", ["s3cr\u00e9t", "s3cr\n3t"], ids=["not ASCII", "two lines"])
def test_token_that_no_header_can_contain_is_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str
) -> None:
    use_kubeconfig(monkeypatch, tmp_path / "config", user={"token": token})
    kubeconfig = access(may_use_kubeconfig=True, timeout_s=LONG_TIMEOUT_S)
    with kubeconfig.client:
        error = failure(lambda: Cluster(kubeconfig, timeout=timedelta(seconds=1)).pods("headscale", "app=headscale"))
    assert "token" in str(error)
    assert "kubeconfig" in str(error)
    assert "s3cr" not in all_texts_of(error)


@pytest.mark.usefixtures("_outside_of_a_cluster")
@pytest.mark.parametrize("content", ["", "[]", "a: [", "[" * 5000, "contexts: 1", "apiVersion: v1\nkind: Config"])
def test_malformed_kubeconfig_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    (tmp_path / "config").write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(ConfigError, match="kubeconfig") as caught:
        access(may_use_kubeconfig=True)
    # Only commands that may not use a kubeconfig report which commands may.
    assert "--dry-run" not in str(caught.value)


@pytest.mark.usefixtures("_outside_of_a_cluster")
def test_hanging_credential_plugin_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # `cat` waits until something is written to the FIFO.
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    use_kubeconfig(monkeypatch, tmp_path / "config", user={"exec": PLUGIN | {"command": "cat", "args": [str(fifo)]}})
    try:
        with pytest.raises(ConfigError, match="HTTP_TIMEOUT"):
            access(may_use_kubeconfig=True)
    finally:
        fifo.write_text("")


@pytest.mark.usefixtures("_outside_of_a_cluster")
@pytest.mark.parametrize("cluster", [{}, {"insecure-skip-tls-verify": True}], ids=["usable", "refused"])
def test_no_key_of_the_kubeconfig_stays_in_a_temporary_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cluster: dict[str, Any]
) -> None:
    """The Kubernetes library removes its temporary files only at a regular exit, and not after Ctrl-C."""
    pairs = {"client-certificate-data": Authority(tmp_path).certificate, "client-key-data": tmp_path / "ca.key"}
    user = {name: base64.b64encode(file.read_bytes()).decode() for name, file in pairs.items()}
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    use_kubeconfig(monkeypatch, tmp_path / "config", cluster=cluster, user=user)
    with suppress(ConfigError):
        access(may_use_kubeconfig=True).client.close()
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("_outside_of_a_cluster")
def test_credential_plugin_provides_the_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    credential = {"apiVersion": PLUGIN["apiVersion"], "kind": "ExecCredential", "status": {"token": "from-plugin"}}
    plugin = PLUGIN | {"command": "echo", "args": [json.dumps(credential)]}
    use_kubeconfig(monkeypatch, tmp_path / "config", user={"exec": plugin})
    kubeconfig = access(may_use_kubeconfig=True, timeout_s=LONG_TIMEOUT_S)
    assert [value.split()[1] for value in kubeconfig.authorization().values()] == ["from-plugin"]
    # The name of the context in a_kubeconfig.
    assert "laptop" in kubeconfig.description
