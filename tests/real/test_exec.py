"""Test access to Headscale through its command line (CLI) in a pod, instead of URL and API key.

The CLI and the server are real, and the Kubernetes API is simulated. Further tests compare the real CLI with the
simulated CLI.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from lifecycle.clients.headscale import dialect
from lifecycle.clients.headscale.exec import ExecTransport
from lifecycle.domain.errors import TransientError
from tests.in_cluster import HEADSCALE_NAMESPACE, MAY_EXEC, MAY_LIST_PODS, cluster_at, exec_transport, may_read
from tests.process.cluster import Authority, require_mount_namespace, serve_to_pod, with_service_account
from tests.real.command import events_named
from tests.real.differences import differences, distinct
from tests.real.pair import ServerPair
from tests.real.programs import TIMEOUT_S, Release, eventually
from tests.real.server import HeadscaleServer
from tests.real.tailscale_client import TailscaleClient
from tests.real.test_life import (  # these run here with the fixture `workload` of this module
    test_new_pod_replaces_the_node_and_the_record,
    test_node_registered_by_the_cli_is_not_deleted,
    test_without_key_metadata_the_only_online_node_is_published,
)
from tests.real.workload import NAMESPACE, USER, Workload
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.headscale_cli import Finished, HeadscaleCli
from tests.simulators.kubernetes import ExecFault, KubernetesSimulator
from tests.simulators.serve import serve

__all__ = [
    "test_new_pod_replaces_the_node_and_the_record",
    "test_node_registered_by_the_cli_is_not_deleted",
    "test_without_key_metadata_the_only_online_node_is_published",
]

STATE_SECRET: Final = "app-tailscale"
"""The name of the Secret in which a tailscale container stores its state."""

KEEP_NODE: Final = {"NODE_POLICY": "keep", "TS_KUBE_SECRET": STATE_SECRET}
"""Settings with which `cleanup` does not delete the node whose id is in the state Secret."""

Command = Callable[[Sequence[str]], Finished]
"""A function that runs a command line."""


def real_cli(server: HeadscaleServer) -> Command:
    """Return a function that runs the real CLI."""

    def run(argv: Sequence[str]) -> Finished:
        done = server.run_cli(*argv[1:])
        return Finished(done.returncode, done.stdout.encode(), done.stderr.encode())

    return run


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    require_mount_namespace()
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def kubernetes(server: HeadscaleServer) -> KubernetesSimulator:
    """A simulated cluster with a pod, in which the command `headscale` is the real CLI."""
    kubernetes = KubernetesSimulator()
    kubernetes.add_pod("headscale-0", {"headscale": {"headscale": real_cli(server)}}, namespace=HEADSCALE_NAMESPACE)
    kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
    kubernetes.allow(NAMESPACE, may_read(STATE_SECRET))
    return kubernetes


@pytest.fixture
def workload(
    workload: Workload, kubernetes: KubernetesSimulator, authority: Authority, temporary_folder: Path
) -> Iterator[Workload]:
    """A workload without URL and API key of Headscale, which runs `headscale` in the pod of the simulated cluster."""
    account = temporary_folder / "serviceaccount"
    with serve_to_pod(kubernetes, authority, account=account, namespace=NAMESPACE) as variables:
        for name in ("HEADSCALE_URL", "HEADSCALE_API_KEY"):
            del workload.environment[name]
        workload.environment |= {"HEADSCALE_NAMESPACE": HEADSCALE_NAMESPACE, **variables}
        workload.command_prefix = with_service_account(account)
        yield workload


@pytest.fixture
def transport(kubernetes: KubernetesSimulator) -> Iterator[ExecTransport]:
    with serve(kubernetes) as url, cluster_at(url, kubernetes, timeout_s=TIMEOUT_S) as cluster:
        yield exec_transport(cluster, lambda: datetime.now(UTC))


def write_state_secret(kubernetes: KubernetesSimulator, client: TailscaleClient) -> None:
    """Write the id of the client's node into the state Secret, as the real tailscale container does."""
    kubernetes.put_secret(NAMESPACE, STATE_SECRET, {"device_id": client.status()["Self"]["ID"]})


def run_dns_watch_once(workload: Workload, **settings: str) -> None:
    """Publish the address of the node, and check that the command succeeds."""
    ended = workload.run("dns-watch", "--once", **settings)
    assert (ended.exit_status, ended.errors) == (0, ""), ended.out + ended.errors


# --- Keeping the node ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "logs_in_again"),
    [pytest.param("", False, id="no tags, no second login"), pytest.param("tag:web", True, id="tags, second login")],
)
def test_kept_node_returns_with_its_address_and_its_record_needs_no_write(
    tags: str, logs_in_again: bool, workload: Workload, kubernetes: KubernetesSimulator
) -> None:
    """The pod is replaced, and the new client has the state of the old client."""
    settings = KEEP_NODE | {"AUTHKEY_TAGS": tags}
    [event] = events_named(workload.run_cleanup(**settings).events, "node.not_kept")
    assert "Secret does not exist" in event["reason"]
    client = workload.start_client()
    write_state_secret(kubernetes, client)
    run_dns_watch_once(workload, AUTHKEY_TAGS=tags)
    ids, address, written = workload.node_ids, client.address, len(workload.cloudflare.writes)
    assert (workload.record_contents, len(ids)) == ([address], 1)
    client.stop()

    [kept] = events_named(workload.run_cleanup(**settings).events, "node.kept")
    assert ([kept["node_id"]], workload.node_ids) == (ids, ids)
    client.start()
    if logs_in_again:
        client.log_in(workload.key_file)
    run_dns_watch_once(workload, AUTHKEY_TAGS=tags)
    assert (workload.node_ids, client.address) == (ids, address)
    assert (workload.record_contents, len(workload.cloudflare.writes)) == ([address], written)


def test_duplicate_of_a_kept_node_is_deleted(workload: Workload, kubernetes: KubernetesSimulator) -> None:
    workload.run_cleanup()
    client = workload.start_client()
    write_state_secret(kubernetes, client)
    [kept] = workload.node_ids
    workload.start_client(key_file=workload.write_key(workload.server.create_key(USER))).stop()
    assert len(workload.node_ids) == 2
    workload.run_cleanup(**KEEP_NODE)
    assert workload.node_ids == [kept]


def test_client_with_the_state_of_a_deleted_node_registers_a_new_node(
    workload: Workload, kubernetes: KubernetesSimulator
) -> None:
    """The state Secret still contains the id of the deleted node."""
    workload.run_cleanup()
    client = workload.start_client()
    write_state_secret(kubernetes, client)
    [old] = workload.node_ids
    client.stop()
    workload.server.delete_node(old)
    [event] = events_named(workload.run_cleanup(**KEEP_NODE).events, "node.not_kept")
    assert f"no node {old}" in event["reason"]
    client.start()
    client.log_in(workload.key_file)
    [new] = eventually(lambda: workload.node_ids or None, "the client to register")
    assert new != old


def test_node_of_a_key_without_user_is_kept_if_it_can_log_in_again(
    workload: Workload, kubernetes: KubernetesSimulator, transport: ExecTransport
) -> None:
    """Headscale 0.28 refuses a second login of such a node, so `cleanup` deletes the node.

    `cleanup` also deletes the node if Headscale reports no version, because the release could be 0.28.
    """
    if workload.server.release.minor < 28:
        pytest.skip("needs Headscale 0.28 or newer: all keys of older releases have a user")
    can_log_in_again = "0.28" not in transport.version()
    key = workload.server.cli("preauthkeys", "create", "--tags", "tag:web", "--expiration", "1h")["key"]
    client = workload.start_client(key_file=workload.write_key(key))
    write_state_secret(kubernetes, client)
    [old] = workload.node_ids
    client.stop()
    workload.run_cleanup(**KEEP_NODE, AUTHKEY_TAGS="tag:web")
    assert workload.node_ids == ([old] if can_log_in_again else [])
    client.start()
    client.log_in(workload.key_file)
    [new] = eventually(lambda: workload.node_ids or None, "the client to register")
    assert (new == old) is can_log_in_again


# --- Lost responses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [ExecFault(sent_bytes=7), ExecFault(status=b"")], ids=["truncated output", "no status"]
)
def test_key_is_replaced_if_the_output_with_its_secret_is_lost(
    fault: ExecFault, workload: Workload, kubernetes: KubernetesSimulator
) -> None:
    """From Headscale 0.28 on, the lost key is expired. Older releases need its secret for this."""
    before = _key_ids(workload)
    kubernetes.add_exec_fault(fault, "preauthkeys create")
    ended = workload.run_cleanup()
    lost, replacement = sorted(_key_ids(workload) - before, key=int)
    can_expire = workload.server.release.minor >= 28
    [event] = events_named(ended.events, "pre_auth_key.expired" if can_expire else "pre_auth_key.expire_failed")
    assert event["key_id"] == lost
    keys = {key["id"]: key for key in workload.server.pre_auth_keys()}
    assert (keys[lost]["expiration"] < keys[replacement]["createdAt"]) is can_expire
    workload.start_client()


def _key_ids(workload: Workload) -> set[str]:
    return {key["id"] for key in workload.server.pre_auth_keys()}


def test_stopped_server_is_a_transient_error(workload: Workload, transport: ExecTransport) -> None:
    """The command `headscale` runs in the pod, but cannot connect to the server."""
    workload.server.stop()
    try:
        with pytest.raises(TransientError, match="`headscale nodes list`"):
            transport.nodes()
    finally:
        workload.server.start()
    transport.nodes()


# --- The simulated CLI --------------------------------------------------------------------------------


def shape_of(finished: Finished) -> Any:
    """Return the exit status, the field names and types in the output, and the kind of error."""
    stdout = finished.stdout.decode()
    reason = finished.stderr.decode()
    kind = re.search(r"code = (\w+)|unexpected response status|unknown flag|invalid argument", reason)
    output = _shape(json.loads(stdout)) if stdout.strip() else ""
    return {"status": finished.exit_status, "output": output, "error": kind[0] if kind else reason}


def _shape(value: Any) -> Any:
    match value:
        case dict():
            # Headscale omits `nanos` if it is 0, and `online` depends on timing.
            ignored = ("nanos", "online")
            return {name: _shape(item) for name, item in sorted(value.items()) if name not in ignored}
        case list():
            return distinct(map(_shape, value))
    return type(value).__name__


@pytest.fixture
def servers(release: Release, temporary_folder: Path) -> Iterator[ServerPair]:
    """A real server and a simulator of its release. Both have a node without tags and a node with a tag."""
    with ExitStack() as stack:
        servers = ServerPair(release, temporary_folder, stack)
        servers.register("app.example.com")
        servers.register("web.example.com", "tag:web")
        yield servers


def test_real_and_simulated_command_have_the_same_output(servers: ServerPair, release: Release) -> None:
    """Only the kind of an error is compared, if `shape_of` knows its kind, and otherwise its text."""
    clis = real_cli(servers.server), HeadscaleCli(servers.simulator)
    user, unknown_user = ("1", "4242") if release.identifies_users_by_id else (USER, "nobody")
    user_options = ("--user", user)
    list_options = () if release.minor >= 28 else user_options
    expire_options = ("--id", "424242") if release.minor >= 28 else ("nothing", *user_options)
    create = ("preauthkeys", "create", "--expiration", "1h")
    commands: list[tuple[str, ...]] = [
        ("users", "list"),
        ("nodes", "list"),
        ("preauthkeys", "list", *list_options),
        ("preauthkeys", "create", *user_options, "--expiration", "5400123ms"),
        (*create, *user_options, "--reusable", "--ephemeral", "--tags", "tag:a,tag:b"),
        (*create, "--user", unknown_user),
        (*create, *user_options, "--tags", "web"),
        ("preauthkeys", "list", *list_options),
        ("preauthkeys", "expire", *expire_options),
        ("nodes", "delete", "--identifier", "424242", "--force"),
        ("nodes", "delete", "--identifier", "1", "--force"),
        ("nodes", "delete", "--identifier", "1", "--force"),  # deleted already
    ]
    different = []
    for command in commands:
        real, simulated = (shape_of(run(["headscale", *command, "-o", "json"])) for run in clis)
        if real != simulated:
            different.append(f"headscale {' '.join(command)}")
            different += (f"    {line}" for line in differences(real, simulated))
    if different:
        pytest.fail("\n".join(different), pytrace=False)


def test_version_is_detected(workload: Workload, transport: ExecTransport) -> None:
    minor = workload.server.release.minor
    version = transport.version()
    minors = {int(text) for text in re.findall(r"0\.(\d+)", version)}
    # A build of the main branch reports the version of the previous release, or no version. Without a version, the
    # client detects the release from the help text.
    assert minors & {minor, minor - 1} or (version.endswith("or newer") and max(minors) <= minor)
    command = ["headscale", "preauthkeys", "list", "--help"]
    simulated_cli = HeadscaleCli(HeadscaleSimulator(workload.server.release.simulator_version))
    real, simulated = (run(command).stdout.decode() for run in (real_cli(workload.server), simulated_cli))
    assert dialect.dialect_of_help(real) == dialect.dialect_of_help(simulated)
