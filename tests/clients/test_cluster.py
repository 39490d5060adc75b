"""The Kubernetes API, through its real client: what is asked of it, and every way in which it can end."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client.configuration import Configuration

from lifecycle.clients.http import MAX_ANSWER_BYTES
from lifecycle.clients.kubernetes.api import Cluster, Pod, in_cluster
from lifecycle.domain.errors import ApiError, AuthError, ConfigError, NotFoundError, ResponseError, TransientError
from tests.in_cluster import HEADSCALE_NAMESPACE, MAY_EXEC, MAY_LIST_PODS, cluster_at, may_read
from tests.process.cluster import Authority
from tests.simulators import faults
from tests.simulators.faults import Fault
from tests.simulators.headscale_cli import Finished
from tests.simulators.kubernetes import SERVICE_ACCOUNT, V4, V5, ExecFault, KubernetesSimulator
from tests.simulators.serve import serve

SERVICE_ACCOUNT_FILES = Path("/var/run/secrets/kubernetes.io/serviceaccount")

SHORT_S = 3.0

# More than any frame, and no multiple of a piece.
MEGABYTES = 5 * 1024 * 1024 + 7


def echo(argv: Sequence[str]) -> Finished:
    """A program that writes its arguments, one a line."""
    return Finished(stdout="\n".join(argv[1:]).encode(), stderr=b"a word besides\n")


def fail(argv: Sequence[str]) -> Finished:
    """A program that ends with the number it is given."""
    return Finished(int(argv[1]), stdout=b"half a", stderr=b"no\n")


def flood(argv: Sequence[str]) -> Finished:
    """A program that writes as many bytes as it is told to."""
    return Finished(stdout=b"0123456789abcdef" * (int(argv[1]) // 16 + 1))


@pytest.fixture
def kubernetes() -> KubernetesSimulator:
    """One pod of a StatefulSet, and all the rights that we ever ask for."""
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
def impatient(kubernetes: KubernetesSimulator, url: str) -> Iterator[Cluster]:
    with cluster_at(url, kubernetes, timeout_s=SHORT_S) as cluster:
        yield cluster


def the_pod(cluster: Cluster) -> Pod:
    [pod] = cluster.pods(HEADSCALE_NAMESPACE, "app.kubernetes.io/name=headscale")
    return pod


def run(cluster: Cluster, *argv: str) -> Any:
    return cluster.run(the_pod(cluster), "headscale", argv)


Ask = Callable[[Cluster], object]

ASKS: list[Any] = [
    pytest.param(lambda cluster: cluster.secret(HEADSCALE_NAMESPACE, "api-key"), "/secrets/", id="secret"),
    pytest.param(lambda cluster: cluster.pods(HEADSCALE_NAMESPACE, "app=x"), "/pods", id="pods"),
    pytest.param(lambda cluster: run(cluster, "echo"), "/exec", id="exec"),
]


def failure(ask: Callable[[], object]) -> ApiError:
    with pytest.raises(ApiError) as raised:
        ask()
    return raised.value


# --- Secrets ------------------------------------------------------------------------------------------


def test_a_secret_is_given_as_it_is(kubernetes: KubernetesSimulator, cluster: Cluster) -> None:
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", {"key": "hskey-api-1", "empty": "", "text": "ä\n"})
    assert cluster.secret(HEADSCALE_NAMESPACE, "api-key") == {
        "key": b"hskey-api-1",
        "empty": b"",
        "text": "ä\n".encode(),
    }


def test_no_secret_is_told_from_an_empty_one(kubernetes: KubernetesSimulator, cluster: Cluster) -> None:
    assert cluster.secret(HEADSCALE_NAMESPACE, "api-key") is None
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", {})
    assert cluster.secret(HEADSCALE_NAMESPACE, "api-key") == {}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.html(404), id="a-page"),
        pytest.param(faults.answer(404, "404 page not found", content_type="text/plain"), id="text"),
        pytest.param(faults.answer(404, '{"reason": "NotFound"}'), id="json-of-somebody-else"),
        pytest.param(faults.answer(404, '{"kind": "Status", "reason": "Gone"}'), id="another-reason"),
        pytest.param(faults.answer(404), id="nothing"),
    ],
)
def test_a_404_of_anybody_else_says_nothing_about_the_secret(
    fault: Fault, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    kubernetes.faults.add(fault)
    assert type(failure(lambda: cluster.secret(HEADSCALE_NAMESPACE, "api-key"))) is TransientError


A_SECRET = {"kind": "Secret", "metadata": {"name": "api-key"}}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(json.dumps(A_SECRET | {"data": {"key": "not base64!"}}), id="not-base64"),
        pytest.param(json.dumps(A_SECRET | {"data": ["a"]}), id="a-list-of-values"),
        pytest.param(json.dumps(A_SECRET | {"data": {"key": 7}}), id="a-number"),
        pytest.param(json.dumps(A_SECRET | {"metadata": {"name": "other"}}), id="another-secret"),
        pytest.param(json.dumps(A_SECRET | {"kind": "ConfigMap"}), id="another-kind"),
        pytest.param("{}", id="nothing-in-it"),
        pytest.param("[]", id="a-list"),
        pytest.param("null", id="null"),
        pytest.param("", id="empty"),
        pytest.param("<html>", id="a-page"),
    ],
)
def test_a_secret_that_makes_no_sense_is_no_empty_one(
    body: str, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    kubernetes.faults.add(faults.answer(200, body))
    assert type(failure(lambda: cluster.secret(HEADSCALE_NAMESPACE, "api-key"))) is ResponseError


@pytest.mark.parametrize(
    ("values", "reference"),
    [
        ({"key": "hskey-api-1"}, "api-key"),
        ({"key": "hskey-api-1\n"}, "api-key"),
        ({"key": "hskey-api-1", "other": "x"}, "api-key/key"),
    ],
)
def test_a_token_is_a_secrets_only_value_or_the_named_one(
    values: dict[str, str], reference: str, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", values)
    assert cluster.token(HEADSCALE_NAMESPACE, reference) == "hskey-api-1"


@pytest.mark.parametrize(
    ("values", "reference", "told"),
    [
        pytest.param(None, "api-key", "there is no Secret headscale/api-key", id="no-secret"),
        pytest.param({}, "api-key", "not one value but 0", id="empty"),
        pytest.param({"a": "secret-a", "b": "secret-b"}, "api-key", "write api-key/KEY", id="several"),
        pytest.param({"a": "secret-a"}, "api-key/b", "has no key b, only: a", id="another-key"),
        pytest.param({"a": "secret a"}, "api-key", "is not a token", id="with-a-blank"),
        pytest.param({"a": " \n"}, "api-key", "is not a token", id="blank"),
        pytest.param({"a": "secret-ä"}, "api-key/a", "is not a token", id="not-ascii"),
    ],
)
def test_a_token_that_is_not_there_is_refused_credentials(
    values: dict[str, str] | None, reference: str, told: str, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    """No NotFoundError: that would be taken for a node that is gone."""
    if values is not None:
        kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", values)
    error = failure(lambda: cluster.token(HEADSCALE_NAMESPACE, reference))
    assert type(error) is AuthError
    assert str(error).startswith("HEADSCALE_API_KEY_SECRET: ")
    assert told in str(error)
    assert "secret" not in str(error).replace("Secret", "").replace("SECRET", "")


# --- Pods ---------------------------------------------------------------------------------------------


def test_pods_are_found_by_labels_alone(kubernetes: KubernetesSimulator, cluster: Cluster) -> None:
    kubernetes.add_pod("other-0", {"headscale": {}}, labels={"app": "headscale", "tier": "x y"})
    kubernetes.add_pod("elsewhere-0", {"headscale": {}}, namespace="elsewhere")
    assert [pod.name for pod in cluster.pods(HEADSCALE_NAMESPACE, "app=headscale,tier=x y")] == ["other-0"]
    assert [pod.name for pod in cluster.pods(HEADSCALE_NAMESPACE, "app.kubernetes.io/name=headscale")] == [
        "headscale-0"
    ]
    assert cluster.pods(HEADSCALE_NAMESPACE, "app=nothing") == []


@pytest.mark.parametrize(
    ("changes", "ready"),
    [
        ({}, True),
        ({"ready": False}, False),
        ({"phase": "Pending"}, False),
        ({"phase": "Succeeded"}, False),
        ({"leaving": True}, False),
    ],
)
def test_a_pod_is_ready_that_runs_and_was_not_told_to_go(
    changes: dict[str, Any], ready: bool, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    kubernetes.add_pod("a", {"first": {}, "second": {}}, labels={"app": "x"}, **changes)
    [pod] = cluster.pods(HEADSCALE_NAMESPACE, "app=x")
    assert (pod.ready, pod.containers) == (ready, ("first", "second"))


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
def test_a_list_of_pods_that_makes_no_sense_is_no_empty_list(
    kind: str, items: Any, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    kubernetes.faults.add(faults.answer(200, json.dumps({"kind": kind, "items": items})))
    assert type(failure(lambda: cluster.pods(HEADSCALE_NAMESPACE, "app=x"))) is ResponseError


# --- Commands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoken", [(V5, V4), (V4,), (V5,)], ids=["both", "v4", "v5"])
def test_a_command_runs_by_its_arguments_in_either_subprotocol(spoken: tuple[str, ...]) -> None:
    """No shell sees them."""
    arguments = ["a b", "*", "$HOME", "--expiration=1h", "ä&b=c", ""]
    kubernetes = KubernetesSimulator(subprotocols=spoken)
    kubernetes.add_pod("headscale-0", {"headscale": {"echo": echo}})
    kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
    with serve(kubernetes) as url, cluster_at(url, kubernetes) as cluster:
        output = run(cluster, "echo", *arguments)
    assert (output.exit_status, output.stdout.decode().split("\n")) == (0, arguments)
    assert output.stderr == b"a word besides\n"
    assert kubernetes.chosen == [spoken[0]]


@pytest.mark.parametrize("status", [1, 2, 126, 255])
def test_a_commands_exit_status_is_told(status: int, cluster: Cluster) -> None:
    output = run(cluster, "fail", str(status))
    assert (output.exit_status, output.stdout, output.stderr) == (status, b"half a", b"no\n")


def test_megabytes_come_whole(cluster: Cluster) -> None:
    output = run(cluster, "flood", str(MEGABYTES))
    assert output.stdout == flood(["flood", str(MEGABYTES)]).stdout


def test_a_flood_is_not_swallowed(cluster: Cluster) -> None:
    error = failure(lambda: run(cluster, "flood", str(MAX_ANSWER_BYTES + 1)))
    assert type(error) is ResponseError
    assert "32 MiB" in str(error)


def test_what_a_command_writes_is_in_no_repr(cluster: Cluster) -> None:
    assert "half a" not in repr(run(cluster, "fail", "1"))


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(ExecFault(cut_after=0), id="cut-before-the-output"),
        pytest.param(ExecFault(cut_after=4), id="cut-in-the-output"),
        pytest.param(ExecFault(status=False), id="closed-without-a-status"),
        pytest.param(ExecFault(unstarted="container is not running"), id="container-stopped"),
    ],
)
def test_a_command_whose_end_is_not_known_may_be_tried_again(
    fault: ExecFault, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    kubernetes.spoil(fault)
    assert type(failure(lambda: run(cluster, "echo", "all of it"))) is TransientError
    assert run(cluster, "echo", "all of it").stdout == b"all of it"


@pytest.mark.parametrize("fault", [ExecFault(hang=True), ExecFault(stall=True)], ids=["silence", "half-a-frame"])
def test_a_command_that_hangs_is_given_up(
    fault: ExecFault, kubernetes: KubernetesSimulator, impatient: Cluster
) -> None:
    kubernetes.spoil(fault)
    error = failure(lambda: run(impatient, "echo", "some words that make a frame"))
    assert type(error) is TransientError
    assert f"within {SHORT_S:g} s" in str(error)
    assert run(impatient, "echo", "again").stdout == b"again"


@pytest.mark.parametrize("early", [True, False], ids=["before-it-began", "while-it-runs"])
def test_a_command_that_was_given_up_leaves_no_thread(
    early: bool, kubernetes: KubernetesSimulator, impatient: Cluster
) -> None:
    if early:
        kubernetes.faults.add(faults.hang(), path="/exec")
    else:
        kubernetes.spoil(ExecFault(hang=True))
    failure(lambda: run(impatient, "echo"))
    no_thread_is_left()


def no_thread_is_left() -> None:
    for thread in threading.enumerate():
        if thread.name == "kubernetes":
            thread.join(10)
            assert not thread.is_alive()


def test_a_pod_that_has_ended_since_it_was_listed_is_worth_another_try(
    kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    told = {"kind": "Status", "message": "cannot exec in a stopped or completed pod; current phase is Succeeded"}
    kubernetes.faults.add(faults.answer(400, json.dumps(told)), path="/exec")
    assert type(failure(lambda: run(cluster, "echo"))) is TransientError


def test_a_program_that_is_not_there_is_said_so(cluster: Cluster) -> None:
    error = failure(lambda: run(cluster, "headscale"))
    assert type(error) is ResponseError
    assert "executable file not found" in str(error)


def test_a_container_that_is_not_there_is_said_so(cluster: Cluster) -> None:
    pod = the_pod(cluster)
    error = failure(lambda: cluster.run(pod, "other", ["echo"]))
    assert type(error) is ResponseError
    assert "container other is not valid" in str(error)


def test_a_pod_that_was_replaced_is_no_missing_node(kubernetes: KubernetesSimulator, cluster: Cluster) -> None:
    pod = the_pod(cluster)
    [simulated] = [pod for pod in kubernetes.pods if pod.name == "headscale-0"]
    kubernetes.delete_pod(simulated)
    error = failure(lambda: cluster.run(pod, "headscale", ["echo"]))
    assert type(error) is TransientError
    assert not isinstance(error, NotFoundError)


# --- What can happen to every request -----------------------------------------------------------------


@pytest.mark.parametrize(("ask", "path"), ASKS)
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(faults.html(500), TransientError, id="500"),
        pytest.param(faults.html(503), TransientError, id="503"),
        pytest.param(faults.too_many_requests(1), TransientError, id="429"),
        pytest.param(faults.html(404), TransientError, id="404"),
        pytest.param(faults.drop(), TransientError, id="connection-lost"),
        pytest.param(faults.hang(), TransientError, id="hangs"),
        pytest.param(faults.answer(401, "{}"), AuthError, id="401"),
        pytest.param(faults.answer(403, "{}"), AuthError, id="403"),
        pytest.param(faults.answer(422, "{}"), ResponseError, id="422"),
    ],
)
def test_each_failure_is_an_error_of_its_kind(
    ask: Ask, path: str, fault: Fault, kind: type[ApiError], kubernetes: KubernetesSimulator, impatient: Cluster
) -> None:
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", {"key": "x"})
    kubernetes.faults.add(fault, path=path + (r"\?" if path == "/pods" else ""))
    error = failure(lambda: ask(impatient))
    assert type(error) is kind
    assert error.upstream == "Kubernetes"
    ask(impatient)


@pytest.mark.parametrize(("ask", "path"), ASKS)
def test_a_server_that_is_not_there_may_come_back(ask: Ask, path: str, kubernetes: KubernetesSimulator) -> None:
    with serve(kubernetes) as url:
        pass
    with cluster_at(url, kubernetes, timeout_s=SHORT_S) as cluster:
        assert type(failure(lambda: ask(cluster))) is TransientError


@pytest.mark.parametrize(("ask", "path"), ASKS)
def test_a_drip_is_cut_off(ask: Ask, path: str, kubernetes: KubernetesSimulator, impatient: Cluster) -> None:
    """Each byte comes in time; all of them would take minutes."""
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", {"key": "x" * 1000})
    kubernetes.faults.add(faults.drip(interval_s=0.05), path=path)
    error = failure(lambda: ask(impatient))
    assert type(error) in (TransientError, ResponseError)
    no_thread_is_left()
    kubernetes.faults.clear()


@pytest.mark.parametrize(("ask", "path"), ASKS[:2])
def test_an_answer_without_end_is_given_up(
    ask: Ask, path: str, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    """Before it fills the memory that a container has."""
    kubernetes.faults.add(faults.oversize(MAX_ANSWER_BYTES + 1), path=path)
    error = failure(lambda: ask(cluster))
    assert type(error) is ResponseError
    assert "larger than 32 MiB" in str(error)


@pytest.mark.parametrize(("ask", "path"), ASKS)
@pytest.mark.parametrize("scheme", ["http", "ws"])
def test_a_redirect_is_not_followed(
    ask: Ask, path: str, scheme: str, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    """Our credentials would go along, to whoever it names."""
    elsewhere = KubernetesSimulator()
    with serve(elsewhere) as url:
        target = url.replace("http", scheme, 1) + "/elsewhere"
        kubernetes.faults.add(faults.answer(302, headers={"Location": target}), path=path)
        failure(lambda: ask(cluster))
    assert elsewhere.requests == []


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # urllib3 leaves the connection to the collector
@pytest.mark.parametrize(("ask", "path"), ASKS)
def test_a_redirect_to_nowhere_ends_no_loop(
    ask: Ask, path: str, kubernetes: KubernetesSimulator, cluster: Cluster
) -> None:
    kubernetes.faults.add(faults.answer(302, headers={"Location": "http://[bad"}), path=path)
    assert isinstance(failure(lambda: ask(cluster)), ApiError)
    gc.collect()


@pytest.mark.parametrize(("ask", "path"), ASKS)
def test_a_refused_token_is_told(ask: Ask, path: str, kubernetes: KubernetesSimulator, cluster: Cluster) -> None:
    kubernetes.rotate_token()
    error = failure(lambda: ask(cluster))
    assert type(error) is AuthError
    assert "does not accept our credentials (a simulated one" in str(error)


@pytest.mark.parametrize(("ask", "path"), ASKS)
def test_no_error_shows_the_token(ask: Ask, path: str, kubernetes: KubernetesSimulator, impatient: Cluster) -> None:
    for fault in (faults.html(500), faults.drop(), faults.answer(401, "{}"), faults.answer(403, "{}"), faults.hang()):
        kubernetes.faults.add(fault, path=path)
        error: BaseException | None = failure(lambda: ask(impatient))
        while error is not None:
            assert kubernetes.token not in f"{error} {error!r} {vars(error)}"
            error = error.__cause__ or error.__context__


@pytest.mark.parametrize("known", [True, False], ids=["its-authority-is-known", "nobody-we-know"])
@pytest.mark.parametrize("ask", ["get", "exec"])
def test_only_a_server_with_a_certificate_of_the_clusters_authority_is_asked(
    ask: str, known: bool, kubernetes: KubernetesSimulator, tmp_path: Path
) -> None:
    """Anybody else would get the service account's token."""
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", {"key": "x"})
    own, other = (tmp_path / name for name in ("own", "other"))
    for folder in (own, other):
        folder.mkdir()
    server, stranger = Authority(own), Authority(other)
    [simulated] = [pod for pod in kubernetes.pods if pod.name == "headscale-0"]
    pod = Pod(HEADSCALE_NAMESPACE, simulated.name, "uid", "2026-03-01T12:00:00Z", ("headscale",), True, False)
    with serve(kubernetes, tls=server.server) as url:
        configuration = Configuration(host=url)
        configuration.api_key["BearerToken"] = f"Bearer {kubernetes.token}"
        configuration.ssl_ca_cert = str((server if known else stranger).certificate)
        with Cluster(configuration, description="a simulated one", timeout=timedelta(seconds=10)) as cluster:
            asked: Callable[[], object] = (
                (lambda: cluster.run(pod, "headscale", ["echo"]))
                if ask == "exec"
                else (lambda: cluster.secret(HEADSCALE_NAMESPACE, "api-key"))
            )
            if known:
                asked()
            else:
                assert type(failure(asked)) is TransientError
    assert bool(kubernetes.requests) is known


# --- Rights -------------------------------------------------------------------------------------------


def refusal(ask: Callable[[], object]) -> AuthError | None:
    """How RBAC refuses; None when it does not."""
    try:
        ask()
    except AuthError as error:
        return error
    return None


def rule_in(error: ApiError) -> tuple[str, dict[str, Any]]:
    """The namespace and the rule that an error asks for, read as an operator would paste it."""
    assert SERVICE_ACCOUNT in str(error)
    match = re.search(r"Role in namespace (\S+) with this rule: (- .*)$", str(error))
    assert match is not None, str(error)
    [rule] = yaml.safe_load(match[2])
    return match[1], rule


@pytest.mark.parametrize("minor", [34, 35], ids=["1.34", "1.35"])
@pytest.mark.parametrize("owner", ["StatefulSet", "ReplicaSet"])
def test_each_missing_right_is_named_so_that_it_can_be_pasted(minor: int, owner: str) -> None:
    """Giving what the errors ask for, one after another, is enough, and not more than is used."""
    kubernetes = KubernetesSimulator(minor=minor)
    kubernetes.add_pod("headscale-0", {"headscale": {"echo": echo}}, owner=owner)
    kubernetes.put_secret(HEADSCALE_NAMESPACE, "api-key", {"key": "x"})
    given = []
    with serve(kubernetes) as url, cluster_at(url, kubernetes) as cluster:
        for ask in (lambda: cluster.secret(HEADSCALE_NAMESPACE, "api-key"), lambda: run(cluster, "echo")):
            while (error := refusal(ask)) is not None:
                namespace, rule = rule_in(error)
                assert rule not in given, "what was asked for was not enough"
                given.append(rule)
                kubernetes.allow(namespace, rule)
    names = {"resourceNames": ["headscale-0"]} if owner == "StatefulSet" else {}
    assert given == [may_read("api-key"), MAY_LIST_PODS, MAY_EXEC | names]


# --- Which cluster ------------------------------------------------------------------------------------


@pytest.fixture
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_no_cluster")
def test_outside_of_a_cluster_nothing_is_written_through_a_kubeconfig() -> None:
    with pytest.raises(ConfigError, match="elsewhere only --dry-run uses a kubeconfig"):
        in_cluster(needed_for="HEADSCALE_ACCESS", timeout=timedelta(seconds=1))


@pytest.mark.usefixtures("_no_cluster")
@pytest.mark.parametrize(
    ("setting", "advice"),
    [
        ("HEADSCALE_ACCESS", "set HEADSCALE_URL and HEADSCALE_API_KEY"),
        ("HEADSCALE_API_KEY_SECRET", "set HEADSCALE_API_KEY or"),
        ("NODE_POLICY", "set NODE_POLICY=replace"),
    ],
)
def test_what_needs_the_kubernetes_api_is_named_with_what_to_set_instead(setting: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=f"^{setting}: .*Or {advice}"):
        in_cluster(needed_for=setting, timeout=timedelta(seconds=1))


@pytest.mark.usefixtures("_no_cluster")
def test_a_token_that_is_not_mounted_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    if SERVICE_ACCOUNT_FILES.exists():
        pytest.skip("this machine is a pod; run the tests where no service account is mounted")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    with pytest.raises(ConfigError, match="automountServiceAccountToken"):
        in_cluster(needed_for="HEADSCALE_ACCESS", timeout=timedelta(seconds=1))


# --- What it costs ------------------------------------------------------------------------------------


def modules_after(code: str) -> set[str]:
    """What a fresh interpreter has imported after this."""
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_kubernetes_is_imported_by_nobody_who_does_not_need_it() -> None:
    imported = modules_after(
        "import lifecycle.cli, lifecycle.cleanup.run, lifecycle.dns_watch.loop, lifecycle.report.output"
    )
    assert {"kubernetes", "websocket", "urllib3", "yaml"} & imported == set()


def test_only_the_parts_that_are_needed_are_imported() -> None:
    """The generated API alone is 250 modules and 20 MB."""
    imported = modules_after("import lifecycle.clients.headscale.exec")
    assert "kubernetes" in imported
    assert not [name for name in imported if name.startswith(("kubernetes.client.models.", "kubernetes.client.api."))]
