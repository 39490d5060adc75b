"""Tests of the client that runs the `headscale` command in Headscale's pod, with a simulator of each release.

Many tests are imported from the tests of the REST API's client. Here, they run with the fixtures of this module.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from lifecycle.clients.headscale.exec import ExecTransport
from lifecycle.clients.headscale.writer import HeadscaleWriter
from lifecycle.domain.errors import ApiError, AuthError, NotFoundError, ResponseError, TransientError
from lifecycle.domain.model import KeySpec, User
from tests.builders import NAME
from tests.clients import test_headscale as rest_api_tests
from tests.clients.servers import all_texts_of
from tests.clients.test_headscale import (  # noqa: F401 - pytest collects the imported tests
    CREATE,
    HOUR,
    add_fault,
    always_owned,
    create_key,
    find_user,
    retrying_on,
    server_of,
    test_create_without_a_response_is_logged,
    test_deletion_of_a_missing_node_succeeds,
    test_deletion_with_a_lost_response_is_confirmed,
    test_fields_of_a_node,
    test_key_belongs_to_the_user_and_is_valid,
    test_key_has_the_requested_properties,
    test_missing_node_is_not_found,
    test_node_that_is_no_longer_owned_is_not_deleted,
    test_only_the_users_keys_are_listed,
    test_tagged_node_has_tags_and_key,
    test_user_of_an_oidc_provider_that_reports_no_name,
    test_users_have_id_and_name,
    unexpired_keys,
)
from tests.in_cluster import (
    HEADSCALE_NAMESPACE,
    MAY_EXEC,
    MAY_LIST_PODS,
    MemoryCluster,
    add_headscale,
    cluster_at,
    exec_transport,
)
from tests.simulators import faults
from tests.simulators.dialects import VERSIONS
from tests.simulators.faults import Fault
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.headscale_cli import Finished, HeadscaleCli
from tests.simulators.kubernetes import ExecFault, KubernetesSimulator
from tests.simulators.serve import serve
from tests.world import Clock, events_named

ONE_RELEASE = pytest.mark.parametrize("server", ["0.28.0"], indirect=True)
"""Run a test with only one release, because all releases behave in the same way."""

# The `headscale` command of these versions expires a pre-auth key by the id of the key; older versions need the secret.
EXPIRES_BY_ID = [version for version in VERSIONS if version >= "0.28"]
EXPIRES_BY_SECRET = [version for version in VERSIONS if version < "0.28"]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=VERSIONS)
def server(request: pytest.FixtureRequest, clock: Clock) -> HeadscaleSimulator:
    """A simulated Headscale of each release, with two users."""
    return server_of(request.param, clock)


@pytest.fixture
def cli(server: HeadscaleSimulator, clock: Clock) -> HeadscaleCli:
    """The `headscale` command in the server's pod."""
    return HeadscaleCli(server, now=clock.now)


@pytest.fixture
def kubernetes(cli: HeadscaleCli) -> KubernetesSimulator:
    """A cluster in which a pod of a StatefulSet runs the server."""
    kubernetes = KubernetesSimulator()
    add_headscale(kubernetes, cli)
    kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
    return kubernetes


Connect = Callable[..., ExecTransport]


@pytest.fixture
def connect(kubernetes: KubernetesSimulator, clock: Clock) -> Iterator[Connect]:
    """A function that returns a transport with the given settings for the selection of the pod."""
    with serve(kubernetes) as url, cluster_at(url, kubernetes) as cluster:
        yield lambda **settings: exec_transport(cluster, clock.now, **settings)


@pytest.fixture
def transport(connect: Connect) -> ExecTransport:
    return connect()


@pytest.fixture
def headscale(transport: ExecTransport, clock: Clock) -> HeadscaleWriter:
    return HeadscaleWriter(transport, retrying_on(clock))


# --- Detecting the version -----------------------------------------------------------------------------


def test_version_is_read_once(server: HeadscaleSimulator, transport: ExecTransport, cli: HeadscaleCli) -> None:
    assert [transport.version(), transport.version()] == [server.version] * 2
    assert cli.calls == [("version", "-o", "json")]


@pytest.mark.parametrize("reported", ["dev", "v0.0.0-20260721000000-f20f1f12abcd", "(devel)"])
def test_release_of_a_custom_build_is_detected_by_the_options_of_its_command(
    reported: str, server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    server.reported_version = reported
    minor = int(server.version.split(".")[1])
    detected = "0.23 to 0.25" if minor <= 25 else "0.26 or 0.27" if minor <= 27 else "0.28 or newer"
    assert headscale.version() == detected
    create_key(headscale, clock)
    svc = find_user(headscale)
    assert [str(key.user_id) for key in server.keys] == [svc.id]


@ONE_RELEASE
def test_unsupported_version_is_refused(server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock) -> None:
    server.reported_version = "v0.22.3"
    with pytest.raises(ResponseError, match=r"0\.22\.3 .* 0\.23"):
        headscale.version()
    assert clock.elapsed_s == 0, "it must not be retried"


def test_version_is_detected_again_in_another_pod(
    server: HeadscaleSimulator,
    cli: HeadscaleCli,
    kubernetes: KubernetesSimulator,
    headscale: HeadscaleWriter,
    clock: Clock,
) -> None:
    """An upgrade of Headscale replaces the pod, so the other pod can run another version."""
    assert headscale.version() == server.version
    [pod] = kubernetes.pods
    kubernetes.delete_pod(pod)
    server.upgrade("0.30.0")
    add_headscale(kubernetes, cli)
    key = create_key(headscale, clock)
    assert headscale.version() == "0.30.0"
    assert unexpired_keys(server, clock) == [key.secret.get_secret_value()]


# --- Commands ------------------------------------------------------------------------------------------


def test_arguments_of_each_command(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, cli: HeadscaleCli, clock: Clock
) -> None:
    user = find_user(headscale)
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    headscale.create_pre_auth_key(
        KeySpec(user, HOUR, reusable=True, ephemeral=True, tags=frozenset({"tag:b", "tag:a"})), now=clock.now
    )
    headscale.pre_auth_keys(user)
    headscale.delete_node(node, is_still_owned=always_owned)
    minor = int(server.version.split(".")[1])
    # Up to 0.25, the option contains the name of the user.
    user_option = ("--user", "svc" if minor <= 25 else "2")
    lifetime = next(argument for call in cli.calls for argument in call if argument.endswith("ms"))
    assert list(dict.fromkeys(cli.calls)) == [
        ("users", "list", "-o", "json"),
        ("nodes", "list", "-o", "json"),
        ("version", "-o", "json"),
        (
            *("preauthkeys", "create", *user_option, "--expiration", lifetime, "--reusable", "--ephemeral"),
            *("--tags", "tag:a,tag:b", "-o", "json"),
        ),
        ("preauthkeys", "list", *(user_option if minor <= 27 else ()), "-o", "json"),
        ("nodes", "delete", "--identifier", "1", "--force", "-o", "json"),
    ]


def test_no_secret_is_in_an_argument(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, kubernetes: KubernetesSimulator, clock: Clock
) -> None:
    """Arguments are visible in URLs, in audit logs, and in the process table of the machine."""
    add_fault(server, CREATE, faults.drop(after_execution=True))
    key = create_key(headscale, clock)
    # Up to 0.27, the key is not expired, because the command would need its secret as an argument.
    with suppress(ResponseError):
        headscale.expire_pre_auth_key(key, find_user(headscale))
    urls = " ".join(f"{exchange.path}?{exchange.query}" for exchange in kubernetes.requests)
    assert "preauthkeys" in urls
    assert not [secret for secret in server.secrets() if secret in urls]


# --- Output --------------------------------------------------------------------------------------------

LISTS: list[Any] = [
    pytest.param(lambda transport: transport.users(), id="users"),
    pytest.param(lambda transport: transport.nodes(), id="nodes"),
    pytest.param(lambda transport: transport.pre_auth_keys(User("2", "svc")), id="keys"),
]

A_LOG_LINE = '{"level":"info","time":1767225600,"message":"Opening database"}'


@ONE_RELEASE
@pytest.mark.parametrize("call", LISTS)
def test_null_of_a_successful_command_is_an_empty_list(
    call: Callable[[ExecTransport], list[Any]], kubernetes: KubernetesSimulator, transport: ExecTransport
) -> None:
    kubernetes.add_exec_fault(ExecFault(instead=Finished(stdout=b"null\n")), " list")
    assert call(transport) == []
    kubernetes.add_exec_fault(ExecFault(instead=Finished(1, stdout=b"null\n")), " list")
    with pytest.raises(TransientError):
        call(transport)


@ONE_RELEASE
@pytest.mark.parametrize("call", LISTS)
@pytest.mark.parametrize(
    ("output", "kind"),
    [
        pytest.param("", TransientError, id="empty"),
        pytest.param("\n \n", TransientError, id="blanks"),
        pytest.param("panic: no database", ResponseError, id="text"),
        pytest.param("[", ResponseError, id="truncated"),
        pytest.param('[\n\t{\n\t\t"id": 1\n\t}\n', ResponseError, id="truncated-with-valid-json-inside"),
        pytest.param("{}", ResponseError, id="object"),
        pytest.param('"null"', ResponseError, id="string"),
        pytest.param("[null]", ResponseError, id="null-item"),
        pytest.param('[{"email": "x"}]', ResponseError, id="fields-missing"),
        pytest.param("[] and more", ResponseError, id="text-after-json"),
        pytest.param(f"[]\n{A_LOG_LINE}\n", ResponseError, id="log-line-after-json"),
        pytest.param("  null and void", ResponseError, id="word-that-starts-with-null"),
        pytest.param("warning: null", ResponseError, id="null-after-text"),
        pytest.param("[" * 100_000, ResponseError, id="nested-too-deep"),
    ],
)
def test_malformed_output_is_an_error(
    call: Callable[[ExecTransport], list[Any]],
    output: str,
    kind: type[ApiError],
    kubernetes: KubernetesSimulator,
    transport: ExecTransport,
) -> None:
    kubernetes.add_exec_fault(ExecFault(instead=Finished(stdout=output.encode())), " list")
    with pytest.raises(ApiError) as raised:
        call(transport)
    assert type(raised.value) is kind
    # An error must not contain the output, because the output can contain secrets.
    if output.strip():
        assert output[:20] not in str(raised.value)


@ONE_RELEASE
@pytest.mark.parametrize(
    "preceding",
    [
        f"{A_LOG_LINE}\n",
        f"{A_LOG_LINE}\n{A_LOG_LINE}\n",
        "An updated version of Headscale has been found\n",
        "2026-01-01T00:00:00Z WRN something [] null {}\n\n",
        "null\n",
        "[]\n",
    ],
    ids=["log-line", "two-log-lines", "text", "text-with-json-in-it", "null", "empty-list"],
)
def test_text_before_the_result_is_ignored(
    preceding: str,
    server: HeadscaleSimulator,
    kubernetes: KubernetesSimulator,
    headscale: HeadscaleWriter,
    clock: Clock,
) -> None:
    server.add_node(NAME, user="svc")
    kubernetes.add_exec_fault(ExecFault(before=preceding.encode()), times=None)
    assert [node.hostname for node in headscale.nodes()] == [NAME]
    assert headscale.version() == server.version
    assert create_key(headscale, clock).secret.get_secret_value() == server.keys[-1].key


@ONE_RELEASE
def test_no_error_reveals_a_secret_in_the_output(kubernetes: KubernetesSimulator, transport: ExecTransport) -> None:
    """Up to 0.27, lists of nodes contain pre-auth keys."""
    secret = "0123456789abcdef" * 3
    malformed = f'[{{"id": 1, "pre_auth_key": {{"key": "{secret}"}}}}]'
    for finished in (
        Finished(stdout=malformed.encode()),
        Finished(stdout=malformed[:-4].encode()),
        Finished(1, stderr=f'{{"error": "no such key {secret}"}}'.encode()),
        Finished(1, stderr=f"panic with hskey-auth-{secret} in hand".encode()),
    ):
        kubernetes.add_exec_fault(ExecFault(instead=finished), "nodes list")
        with pytest.raises(ApiError) as raised:
            transport.nodes()
        assert secret not in all_texts_of(raised.value)


# --- Failures ------------------------------------------------------------------------------------------


def grpc_error(code: str, text: str = "a reason") -> str:
    """Return what the `headscale` command of 0.23 to 0.29 writes if the server refuses a request."""
    return json.dumps({"error": f"getting node: rpc error: code = {code} desc = {text}"}, indent="\t") + "\n"


NO_CONFIGURATION = (
    'FTL Error loading config error="fatal error reading config file: '
    'Config File \\"config\\" Not Found in \\"[/etc/headscale /root/.headscale /]\\""'
)
SOCKET = "dial unix /var/run/headscale/headscale.sock: connect:"
NO_ACCESS = f'FTL Could not connect error="{SOCKET} permission denied"'
NO_PROGRAM_RUNC = 'level=error msg="exec failed: exec: \\"headscale\\": executable file not found in $PATH"'
NO_PROGRAM_CRUN = "executable file `headscale` not found in $PATH: No such file or directory"
NO_SOCKET = f'FTL Could not connect error="{SOCKET} no such file or directory"'


@ONE_RELEASE
@pytest.mark.parametrize(
    ("status", "stderr", "kind"),
    [
        pytest.param(1, grpc_error("NotFound", "node not found"), NotFoundError, id="not-found"),
        pytest.param(1, grpc_error("Unknown", "record not found"), NotFoundError, id="not-found-0.26"),
        pytest.param(1, '{"error": "unexpected response status: node not found"}', NotFoundError, id="not-found-0.30"),
        pytest.param(1, grpc_error("Unavailable"), TransientError, id="server-gone"),
        pytest.param(1, grpc_error("DeadlineExceeded"), TransientError, id="server-slow"),
        pytest.param(1, grpc_error("Unknown", "database is locked"), TransientError, id="server-error"),
        pytest.param(1, grpc_error("Internal"), TransientError, id="internal"),
        pytest.param(1, '{"error": "unexpected response status: 500"}', TransientError, id="server-error-0.30"),
        pytest.param(
            1, "… FTL Could not connect: context deadline exceeded\n", TransientError, id="connection-timeout"
        ),
        pytest.param(1, NO_CONFIGURATION, ResponseError, id="no-configuration"),
        pytest.param(1, "Error: loading configuration: no such file", ResponseError, id="no-configuration-0.30"),
        pytest.param(1, "FTL HEADSCALE_CLI_API_KEY environment variable needs to be set", ResponseError, id="no-key"),
        pytest.param(1, NO_ACCESS, ResponseError, id="no-access-to-the-socket"),
        pytest.param(1, NO_SOCKET, TransientError, id="no-socket-yet"),
        pytest.param(1, "open /etc/passwd: no such file or directory: not found", TransientError, id="other-not-found"),
        pytest.param(1, "", TransientError, id="silent"),
        pytest.param(255, "", TransientError, id="silent-255"),
        pytest.param(137, "", TransientError, id="killed"),
        pytest.param(1, grpc_error("InvalidArgument"), ResponseError, id="refused"),
        pytest.param(1, grpc_error("ResourceExhausted"), ResponseError, id="too-many-nodes"),
        pytest.param(1, grpc_error("Unimplemented"), ResponseError, id="unimplemented"),
        pytest.param(1, grpc_error("Unauthenticated"), AuthError, id="refused-caller"),
        pytest.param(1, grpc_error("PermissionDenied"), AuthError, id="refused-permission"),
        pytest.param(127, "sh: headscale: not found", ResponseError, id="no-program"),
        pytest.param(126, "exec failed", ResponseError, id="no-program-126"),
        pytest.param(255, NO_PROGRAM_RUNC, ResponseError, id="no-program-runc"),
        pytest.param(1, NO_PROGRAM_CRUN, ResponseError, id="no-program-crun"),
    ],
)
def test_kind_of_error_for_each_failure(
    status: int, stderr: str, kind: type[ApiError], kubernetes: KubernetesSimulator, transport: ExecTransport
) -> None:
    failed = ExecFault(instead=Finished(status, stdout=b"null\n", stderr=stderr.encode()))
    for call in (transport.nodes, lambda: transport.delete_node("1")):
        kubernetes.add_exec_fault(failed, "nodes")
        with pytest.raises(ApiError) as raised:
            call()
        assert type(raised.value) is kind
        assert raised.value.upstream == "Headscale"
        assert "`headscale nodes" in str(raised.value)
        assert "headscale/headscale-0" in str(raised.value)


@ONE_RELEASE
@pytest.mark.parametrize(
    ("stderr", "advice"),
    [
        pytest.param(NO_CONFIGURATION, "HEADSCALE_CONFIG", id="configuration"),
        pytest.param(NO_ACCESS, "unix_socket_permission", id="permission"),
        pytest.param("unknown flag: --identifier", "HEADSCALE_POD_SELECTOR", id="usage"),
        pytest.param(grpc_error("Unknown", "expected exactly one user, found 2"), "users rename", id="ambiguous-user"),
    ],
)
def test_permanent_failure_is_not_retried(
    stderr: str, advice: str, kubernetes: KubernetesSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    kubernetes.add_exec_fault(ExecFault(instead=Finished(1, stderr=stderr.encode())), "list", times=None)
    with pytest.raises(ResponseError, match=advice):
        headscale.nodes()
    assert clock.elapsed_s == 0


def test_request_to_a_stopped_server_is_retried(cli: HeadscaleCli, headscale: HeadscaleWriter, clock: Clock) -> None:
    cli.stopped = True
    clock.schedule(30, lambda: setattr(cli, "stopped", False))
    assert headscale.nodes() == []
    assert 30 <= clock.elapsed_s < 60


@ONE_RELEASE
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        pytest.param(faults.answer(403, "{}"), AuthError, id="refused"),
        pytest.param(faults.answer(401, "{}"), AuthError, id="token-refused"),
        pytest.param(faults.html(503), TransientError, id="503"),
        pytest.param(faults.drop(), TransientError, id="connection-lost"),
    ],
)
@pytest.mark.parametrize("path", ["/pods", "/exec"])
def test_failure_of_kubernetes_does_not_mean_a_missing_node(
    fault: Fault, kind: type[ApiError], path: str, kubernetes: KubernetesSimulator, transport: ExecTransport
) -> None:
    kubernetes.faults.add(fault, path=path)
    with pytest.raises(kind) as raised:
        transport.node("1")
    assert raised.value.upstream == "Kubernetes"


def test_silently_refused_deletion_is_retried(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    """Up to 0.28, a refused deletion prints `null` and exits with 0."""
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    server.faults.add(faults.answer(500, '{"code": 2, "message": "database is locked"}'), method="DELETE", times=2)
    headscale.delete_node(node, is_still_owned=always_owned)
    assert server.nodes == []


def test_ineffective_deletion_is_an_error(server: HeadscaleSimulator, headscale: HeadscaleWriter) -> None:
    """Headscale confirms the deletion, but still has the node."""
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    server.faults.add(faults.answer(200, "{}"), method="DELETE")
    with pytest.raises(ResponseError, match=r"[Nn]ode 1"):
        headscale.delete_node(node, is_still_owned=always_owned)


@pytest.mark.parametrize("output", [b"null", b"[]", b""], ids=["null", "empty-list", "no-output"])
def test_empty_list_does_not_mean_a_missing_node(
    output: bytes, server: HeadscaleSimulator, headscale: HeadscaleWriter, kubernetes: KubernetesSimulator
) -> None:
    """Otherwise, the deletion would be reported as successful."""
    server.add_node(NAME, user="svc")
    [node] = headscale.nodes()
    kubernetes.add_exec_fault(ExecFault(instead=Finished(stdout=output)), "nodes list", times=20)
    with pytest.raises(TransientError):
        headscale.delete_node(node, is_still_owned=always_owned)


def test_one_incomplete_list_does_not_mean_a_missing_node(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, kubernetes: KubernetesSimulator
) -> None:
    server.add_node(NAME, user="svc")
    server.add_node("laptop", user="ann")
    [node, _] = headscale.nodes()
    laptop = b'[{"id": 2, "machine_key": "mkey:' + b"2" * 64 + b'", "name": "laptop"}]'
    kubernetes.add_exec_fault(ExecFault(instead=Finished(stdout=laptop)), "nodes list")
    headscale.delete_node(node, is_still_owned=always_owned)
    assert [remaining.name for remaining in server.nodes] == ["laptop"]


@ONE_RELEASE
def test_failed_list_does_not_mean_a_missing_node(kubernetes: KubernetesSimulator, transport: ExecTransport) -> None:
    """Headscale can fail to list the nodes because an object that belongs to one of them is missing."""
    failed = ExecFault(instead=Finished(1, stderr=grpc_error("Unknown", "record not found").encode()))
    kubernetes.add_exec_fault(failed, "nodes list")
    with pytest.raises(TransientError, match="record not found"):
        transport.node("1")


# --- Lost responses to a new key -----------------------------------------------------------------------

LOST_RESPONSES = [
    pytest.param(ExecFault(sent_bytes=1), id="reset-within-the-output"),
    pytest.param(ExecFault(sent_bytes=0), id="reset-before-the-output"),
    pytest.param(ExecFault(status=b""), id="closed-without-a-status"),
]


@pytest.mark.parametrize("server", EXPIRES_BY_ID, indirect=True)
@pytest.mark.parametrize("fault", LOST_RESPONSES)
@pytest.mark.parametrize("times", [1, 3])
def test_lost_response_leaves_one_usable_key(
    fault: ExecFault,
    times: int,
    server: HeadscaleSimulator,
    kubernetes: KubernetesSimulator,
    headscale: HeadscaleWriter,
    clock: Clock,
) -> None:
    kubernetes.add_exec_fault(fault, "preauthkeys create", times=times)
    key = create_key(headscale, clock)
    assert len(server.keys) == times + 1
    assert unexpired_keys(server, clock) == [key.secret.get_secret_value()]


@pytest.mark.parametrize("server", EXPIRES_BY_ID, indirect=True)
def test_other_keys_are_not_expired_after_a_lost_response(
    server: HeadscaleSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    rest_api_tests.test_other_keys_are_not_expired_after_a_lost_response(server, headscale, clock)


@pytest.mark.parametrize("server", EXPIRES_BY_SECRET, indirect=True)
def test_key_that_cannot_be_expired_by_id_is_logged(
    server: HeadscaleSimulator,
    kubernetes: KubernetesSimulator,
    headscale: HeadscaleWriter,
    clock: Clock,
    events: list[dict[str, object]],
) -> None:
    """These versions need the secret to expire a key, and the secret was in the lost response."""
    kubernetes.add_exec_fault(ExecFault(sent_bytes=1), "preauthkeys create")
    key = create_key(headscale, clock)
    lost, created = server.keys
    assert (key.id, key.secret.get_secret_value()) == (str(created.id), created.key)
    [event] = events_named(events, "pre_auth_key.expire_failed")
    assert (event["key_id"], event["expires_at"]) == (str(lost.id), lost.expires_at)
    clock.sleep(HOUR.total_seconds() + 60)
    assert unexpired_keys(server, clock) == []


@pytest.mark.parametrize("server", EXPIRES_BY_ID, indirect=True)
@pytest.mark.parametrize(
    "skew", [timedelta(0), timedelta(seconds=90), timedelta(seconds=-90)], ids=["none", "ahead", "behind"]
)
def test_lost_key_is_expired_despite_clock_skew(
    skew: timedelta, server: HeadscaleSimulator, kubernetes: KubernetesSimulator, connect: Connect, clock: Clock
) -> None:
    """To compute when a key expires, the `headscale` command uses the clock of its pod."""
    transport = connect()
    headscale = HeadscaleWriter(ExecTransport(transport._pod, now=lambda: clock.now() + skew), retrying_on(clock))  # noqa: SLF001
    user = find_user(headscale)
    kubernetes.add_exec_fault(ExecFault(sent_bytes=1), "preauthkeys create")
    key = headscale.create_pre_auth_key(KeySpec(user, HOUR), now=lambda: clock.now() + skew)
    assert unexpired_keys(server, clock) == [key.secret.get_secret_value()]


@ONE_RELEASE
@pytest.mark.parametrize("skew", rest_api_tests.SKEWS)
def test_clock_of_the_cluster_is_used(skew: timedelta, server: HeadscaleSimulator, clock: Clock) -> None:
    """The clock of this program is wrong, but each response of the Kubernetes API contains the time."""
    kubernetes = KubernetesSimulator(now=clock.true_now)
    add_headscale(kubernetes, HeadscaleCli(server, now=clock.true_now))
    kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
    headscale = HeadscaleWriter(exec_transport(MemoryCluster(kubernetes, clock.now), clock.now), retrying_on(clock))
    clock.skew = skew
    user = find_user(headscale)
    assert headscale.server_time(clock.now()) == clock.true_now()
    headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now)
    [created] = server.keys
    assert HOUR <= created.expires_at - clock.true_now() < HOUR + timedelta(minutes=1)


@pytest.mark.parametrize("server", EXPIRES_BY_ID, indirect=True)
def test_key_of_another_pod_is_not_expired(
    server: HeadscaleSimulator, kubernetes: KubernetesSimulator, headscale: HeadscaleWriter, clock: Clock
) -> None:
    """Our first command is not executed. Then another pod creates a key with almost the same lifetime."""
    user = find_user(headscale)
    kubernetes.add_exec_fault(ExecFault(instead=Finished(), sent_bytes=0), "preauthkeys create")
    lifetimes: list[timedelta] = []

    def create_key_of_another_pod() -> None:
        command_line = next(command for command in kubernetes.commands if "preauthkeys create" in command)
        words = shlex.split(command_line)
        milliseconds = int(words[words.index("--expiration") + 1].removesuffix("ms"))
        lifetimes.append(timedelta(milliseconds=milliseconds))
        server.create_key("svc", expires_in=lifetimes[0] + timedelta(milliseconds=20))

    clock.schedule(0.1, create_key_of_another_pod)
    key = headscale.create_pre_auth_key(KeySpec(user, HOUR), now=clock.now)
    assert lifetimes, "the other pod created no key"
    assert unexpired_keys(server, clock) == [server.keys[0].key, key.secret.get_secret_value()]


# --- Selecting the pod ---------------------------------------------------------------------------------


@ONE_RELEASE
class TestPodSelection:
    """How Headscale's pod and container are chosen."""

    def test_default_labels_are_tried_in_order(
        self, kubernetes: KubernetesSimulator, cli: HeadscaleCli, transport: ExecTransport
    ) -> None:
        kubernetes.delete_pod(kubernetes.pods[0])
        kubernetes.add_pod("hs-1", {"headscale": {"headscale": cli}}, labels={"app": "headscale"})
        assert transport.nodes() == []

    def test_configured_selector_is_used(
        self, kubernetes: KubernetesSimulator, cli: HeadscaleCli, connect: Connect
    ) -> None:
        kubernetes.delete_pod(kubernetes.pods[0])
        kubernetes.add_pod("hs-1", {"headscale": {"headscale": cli}}, labels={"vpn": "control", "tier": "x"})
        assert connect(selector="vpn=control,tier=x").nodes() == []
        with pytest.raises(TransientError, match="HEADSCALE_POD_SELECTOR"):
            connect(selector="vpn=other").nodes()

    @pytest.mark.parametrize(
        ("containers", "settings"),
        [
            (["proxy", "headscale", "metrics"], {}),
            (["control"], {}),
            (["proxy", "control"], {"container": "control"}),
        ],
        ids=["by-name", "only-container", "configured"],
    )
    def test_container_is_selected(
        self,
        containers: list[str],
        settings: dict[str, str],
        kubernetes: KubernetesSimulator,
        cli: HeadscaleCli,
        connect: Connect,
    ) -> None:
        kubernetes.delete_pod(kubernetes.pods[0])
        programs = {name: {"headscale": cli} if name in ("headscale", "control") else {} for name in containers}
        kubernetes.add_pod("hs-0", programs)
        assert connect(**settings).nodes() == []

    def test_ambiguous_containers_are_listed(
        self, kubernetes: KubernetesSimulator, cli: HeadscaleCli, transport: ExecTransport
    ) -> None:
        kubernetes.delete_pod(kubernetes.pods[0])
        kubernetes.add_pod("hs-0", {"control": {"headscale": cli}, "proxy": {}})
        with pytest.raises(ResponseError, match=r"HEADSCALE_CONTAINER.*control, proxy"):
            transport.nodes()

    def test_pod_without_the_program_is_reported(
        self, kubernetes: KubernetesSimulator, transport: ExecTransport
    ) -> None:
        kubernetes.delete_pod(kubernetes.pods[0])
        kubernetes.add_pod("ui-0", {"ui": {}})
        with pytest.raises(ResponseError, match=r"headscale/ui-0.*HEADSCALE_POD_SELECTOR"):
            transport.nodes()

    @pytest.mark.parametrize("state", [{"ready": False}, {"phase": "Pending"}, {"is_terminating": True}])
    @pytest.mark.parametrize(
        "other_pod",
        [None, {"ui": {}}, {"ui": {}, "proxy": {}}],
        ids=["no-other-pod", "other-pod", "other-pod-with-two-containers"],
    )
    def test_request_is_retried_until_the_pod_is_ready(
        self,
        state: dict[str, Any],
        other_pod: dict[str, Any] | None,
        kubernetes: KubernetesSimulator,
        headscale: HeadscaleWriter,
        clock: Clock,
    ) -> None:
        """The pod with a container `headscale` is used, even if another pod with the same labels is ready."""
        if other_pod is not None:
            kubernetes.add_pod("ui-0", other_pod)
        pod = kubernetes.change_pod(kubernetes.pods[0], **state)
        clock.schedule(20, lambda: kubernetes.change_pod(pod, ready=True, phase="Running", is_terminating=False))
        assert headscale.nodes() == []
        assert clock.elapsed_s >= 20

    def test_request_without_a_pod_is_retried_and_reported(
        self, kubernetes: KubernetesSimulator, headscale: HeadscaleWriter
    ) -> None:
        kubernetes.delete_pod(kubernetes.pods[0])
        with pytest.raises(TransientError, match=r"namespace headscale .*HEADSCALE_NAMESPACE"):
            headscale.nodes()

    def test_missing_program_in_one_of_several_pods_is_reported(
        self, kubernetes: KubernetesSimulator, transport: ExecTransport
    ) -> None:
        # This pod is chosen because it is the newest, but its container has no program.
        kubernetes.add_pod("other-0", {"headscale": {}}, age=timedelta(0))
        with pytest.raises(ResponseError) as raised:
            transport.nodes()
        for text in ("headscale/other-0", "HEADSCALE_POD_SELECTOR", "HEADSCALE_CONTAINER"):
            assert text in str(raised.value)

    def test_newest_of_several_pods_is_used(
        self, kubernetes: KubernetesSimulator, clock: Clock, connect: Connect
    ) -> None:
        """A rolling update deletes the older pod, so changes that were made in that pod can be lost."""
        newer = server_of("0.28.0", clock)
        newer.add_node("new.example.com", user="svc")
        cli = HeadscaleCli(newer, now=clock.now)
        for name, age in (("headscale-b", 10), ("headscale-a", 20)):
            kubernetes.add_pod(name, {"headscale": {"headscale": cli}}, age=timedelta(seconds=age))
        transport = connect()
        assert [node.hostname for node in transport.nodes()] == ["new.example.com"]
        # The paths end with /pods/NAME/exec.
        assert {exchange.path.split("/")[-2] for exchange in kubernetes.requests if "exec" in exchange.path} == {
            "headscale-b"
        }


# --- Reported outcomes ---------------------------------------------------------------------------------


@ONE_RELEASE
def test_outcome_of_each_command_is_reported(kubernetes: KubernetesSimulator, connect: Connect, clock: Clock) -> None:
    outcomes: list[str] = []
    transport = ExecTransport(connect()._pod, now=clock.now, on_outcome=outcomes.append)  # noqa: SLF001
    transport.nodes()
    for fault in (
        ExecFault(sent_bytes=0),
        ExecFault(instead=Finished(1)),
        ExecFault(instead=Finished(1, stderr=grpc_error("InvalidArgument").encode())),
    ):
        kubernetes.add_exec_fault(fault)
        with pytest.raises(ApiError):
            transport.nodes()
    assert outcomes == ["ok", "no_answer", "server_error", "refused"]
