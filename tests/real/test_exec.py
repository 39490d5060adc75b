"""Headscale's real command line in a simulated pod: the life of a pod, and a comparison with the simulated one."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from lifecycle.clients.headscale import dialect
from lifecycle.clients.headscale.exec import ExecTransport
from lifecycle.domain.errors import NotFoundError, TransientError
from tests.in_cluster import HEADSCALE_NAMESPACE, MAY_EXEC, MAY_LIST_PODS, cluster_at, exec_transport, may_read
from tests.process.cluster import Authority, require_mount_namespace, with_service_account
from tests.real.command import named
from tests.real.differences import differences
from tests.real.machine import Machine
from tests.real.programs import TIMEOUT_S, Release, eventually
from tests.real.server import HeadscaleServer
from tests.real.test_life import (  # run again with this module's workload
    test_dry_run,
    test_missing_key_metadata,
    test_node_registered_by_cli,
    test_pod_is_replaced,
    test_unknown_user,
)
from tests.real.workload import NAMESPACE, OTHER_USER, USER, Workload
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.headscale_cli import Finished, HeadscaleCli
from tests.simulators.kubernetes import ExecFault, KubernetesSimulator
from tests.simulators.serve import serve

__all__ = [
    "test_dry_run",
    "test_missing_key_metadata",
    "test_node_registered_by_cli",
    "test_pod_is_replaced",
    "test_unknown_user",
]

STATE_SECRET: Final = "app-tailscale"
KEEP: Final = {"NODE_POLICY": "keep", "TS_KUBE_SECRET": STATE_SECRET}

Program = Callable[[Sequence[str]], Finished]


def real_cli(server: HeadscaleServer) -> Program:
    """Return the server's command line, which uses the socket of the server."""

    def run(argv: Sequence[str]) -> Finished:
        done = subprocess.run(
            server.argv(*argv[1:]),
            env={"PATH": os.environ["PATH"], "HOME": str(server.folder)},
            cwd=server.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    require_mount_namespace()
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def kubernetes(server: HeadscaleServer) -> KubernetesSimulator:
    """A cluster that runs the real server as a pod."""
    kubernetes = KubernetesSimulator()
    kubernetes.add_pod("headscale-0", {"headscale": {"headscale": real_cli(server)}}, namespace=HEADSCALE_NAMESPACE)
    kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
    kubernetes.allow(NAMESPACE, may_read(STATE_SECRET))
    return kubernetes


@pytest.fixture
def workload(
    workload: Workload, kubernetes: KubernetesSimulator, authority: Authority, short_folder: Path
) -> Iterator[Workload]:
    """A workload that finds Headscale by its namespace."""
    account = short_folder / "serviceaccount"
    account.mkdir()
    (account / "ca.crt").write_bytes(authority.certificate.read_bytes())
    (account / "token").write_text(kubernetes.token)
    (account / "namespace").write_text(NAMESPACE)
    with serve(kubernetes, tls=authority.server) as url:
        host, _, port = url.removeprefix("https://").partition(":")
        for name in ("HEADSCALE_URL", "HEADSCALE_API_KEY"):
            del workload.environment[name]
        workload.environment |= {
            "HEADSCALE_NAMESPACE": HEADSCALE_NAMESPACE,
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": port,
        }
        workload.within = with_service_account(account)
        yield workload


@pytest.fixture
def transport(kubernetes: KubernetesSimulator) -> Iterator[ExecTransport]:
    with serve(kubernetes) as url, cluster_at(url, kubernetes, timeout_s=TIMEOUT_S) as cluster:
        yield exec_transport(cluster, lambda: datetime.now(UTC))


def publish(workload: Workload, **settings: str) -> None:
    """Update the record once."""
    ended = workload.run("dns-watch", "--once", **settings)
    assert (ended.exit_status, ended.errors) == (0, ""), ended.out + ended.errors


# --- Keeping the node ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "auth_once"),
    [pytest.param("", True, id="no tags, key used once"), pytest.param("tag:web", False, id="tags, key used twice")],
)
def test_kept_node_returns_with_its_address_and_its_record_needs_no_write(
    tags: str, auth_once: bool, workload: Workload, kubernetes: KubernetesSimulator
) -> None:
    """The pod is replaced and keeps its state."""
    settings = KEEP | {"AUTHKEY_TAGS": tags}
    [event] = named(workload.cleanup(**settings).events, "node.not_kept")
    assert "Secret does not exist" in event["reason"]
    machine = workload.machine()
    # The tailscale container writes this when it runs.
    kubernetes.put_secret(NAMESPACE, STATE_SECRET, {"device_id": machine.status()["Self"]["ID"]})
    publish(workload, AUTHKEY_TAGS=tags)
    ids, address, written = workload.ids, machine.address, len(workload.cloudflare.writes)
    assert (workload.contents, len(ids)) == ([address], 1)
    machine.stop()

    [kept] = named(workload.cleanup(**settings).events, "node.kept")
    assert ([kept["node_id"]], workload.ids) == (ids, ids)
    machine.start()
    if not auth_once:
        machine.up(workload.key_file)
    publish(workload, AUTHKEY_TAGS=tags)
    assert (workload.ids, machine.address) == (ids, address)
    assert (workload.contents, len(workload.cloudflare.writes)) == ([address], written)


def test_duplicate_of_a_kept_node_is_deleted(workload: Workload, kubernetes: KubernetesSimulator) -> None:
    workload.cleanup()
    machine = workload.machine()
    kubernetes.put_secret(NAMESPACE, STATE_SECRET, {"device_id": machine.status()["Self"]["ID"]})
    [kept] = workload.ids
    workload.machine(key_file=workload.write_key(workload.server.create_key(USER))).stop()
    assert len(workload.ids) == 2
    workload.cleanup(**KEEP)
    assert workload.ids == [kept]


def test_deleted_node_is_replaced_although_its_state_was_kept(
    workload: Workload, kubernetes: KubernetesSimulator
) -> None:
    """The Secret still names the deleted node, and the client registers again with the same state."""
    workload.cleanup()
    machine = workload.machine()
    kubernetes.put_secret(NAMESPACE, STATE_SECRET, {"device_id": machine.status()["Self"]["ID"]})
    [old] = workload.ids
    machine.stop()
    workload.server.delete_node(old)
    [event] = named(workload.cleanup(**KEEP).events, "node.not_kept")
    assert f"no node {old}" in event["reason"]
    machine.start()
    machine.up(workload.key_file)
    # A restarted client reports its old node until the server has responded.
    [new] = eventually(lambda: workload.ids or None, "the client to register")
    assert new != old


def test_node_of_a_key_without_user_is_kept_if_it_can_return(
    workload: Workload, kubernetes: KubernetesSimulator, transport: ExecTransport
) -> None:
    """Headscale 0.28 refuses the second login of such a node, so the node is replaced there.

    It is also replaced if the program cannot tell 0.28 from a newer version, as with a build that reports no version.
    """
    if workload.server.release.minor < 28:
        pytest.skip("needs Headscale 0.28 or newer: all keys of older releases have a user")
    can_return = "0.28" not in transport.version()
    key = workload.server.cli("preauthkeys", "create", "--tags", "tag:web", "--expiration", "1h")["key"]
    machine = workload.machine(key_file=workload.write_key(key))
    kubernetes.put_secret(NAMESPACE, STATE_SECRET, {"device_id": machine.status()["Self"]["ID"]})
    [old] = workload.ids
    machine.stop()
    workload.cleanup(**KEEP, AUTHKEY_TAGS="tag:web")
    assert workload.ids == ([old] if can_return else [])
    machine.start()
    machine.up(workload.key_file)
    [new] = eventually(lambda: workload.ids or None, "the client to register")
    assert (new == old) is can_return


# --- Lost responses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault", [ExecFault(cut_after=7), ExecFault(status=False)], ids=["truncated output", "no status"]
)
def test_key_with_lost_output_is_expired(fault: ExecFault, workload: Workload, kubernetes: KubernetesSimulator) -> None:
    """Before 0.28, the command line needs the lost secret to expire the key, so the key expires by itself."""
    before = _key_ids(workload)
    kubernetes.spoil(fault, "preauthkeys create")
    ended = workload.cleanup()
    hidden, made = sorted(_key_ids(workload) - before, key=int)
    by_id = workload.server.release.minor >= 28
    [event] = named(ended.events, "pre_auth_key.expired" if by_id else "pre_auth_key.expire_failed")
    assert event["key_id"] == hidden
    keys = {key["id"]: key for key in workload.server.keys()}  # noqa: SIM118 - not a dictionary
    assert (keys[hidden]["expiration"] < keys[made]["createdAt"]) is by_id
    workload.machine()


def _key_ids(workload: Workload) -> set[str]:
    return {key["id"] for key in workload.server.keys()}  # noqa: SIM118 - not a dictionary


def test_stopped_server_is_a_transient_error(workload: Workload, transport: ExecTransport) -> None:
    """The command line is available, but its server is not."""
    workload.server.stop()
    try:
        with pytest.raises(TransientError, match="`headscale nodes list`"):
            transport.nodes()
    finally:
        workload.server.start()
    transport.nodes()


# --- The simulated command ----------------------------------------------------------------------------


class CliTwins:
    """The real and the simulated command line, on servers with the same users, keys and nodes."""

    def __init__(self, release: Release, folder: Path, stack: ExitStack) -> None:
        server = stack.enter_context(HeadscaleServer(release, folder))
        simulator = HeadscaleSimulator(release.simulated)
        self.by_id = release.user_by_id
        self.minor = release.minor
        self.real = real_cli(server)
        self.simulated = HeadscaleCli(simulator)
        for name in (USER, OTHER_USER):
            server.create_user(name)
            simulator.add_user(name)
        for hostname, tags in (("app.example.com", ()), ("web.example.com", ("tag:web",))):
            (folder / "authkey").write_text(server.create_key(USER, *(f"--tags={tag}" for tag in tags)))
            machine = Machine(release, folder / hostname.partition(".")[0], hostname=hostname, url=server.url)
            stack.callback(machine.stop)
            machine.up(folder / "authkey")
            key = simulator.create_key(USER, tags=tags)
            simulator.connect(simulator.register(key=key.key, hostname=hostname).id)

    def user(self, name: str = USER) -> str:
        """Return how the command line identifies a user."""
        return {USER: "1", OTHER_USER: "2"}.get(name, "4242") if self.by_id else name

    def shapes(self, *arguments: str) -> list[Any]:
        """Return the shapes of the real and the simulated output."""
        return [shape_of(run(["headscale", *arguments])) for run in (self.real, self.simulated)]


def shape_of(finished: Finished) -> Any:
    """Return the exit status, the names and types of the output, and the kind of error."""
    stdout = finished.stdout.decode()
    reason = finished.stderr.decode()
    kind = re.search(r"code = (\w+)|unexpected response status|unknown flag|invalid argument", reason)
    output = _shape(json.loads(stdout)) if stdout.strip() else ""
    return {"status": finished.exit_status, "output": output, "error": kind[0] if kind else reason}


def _shape(value: Any) -> Any:
    match value:
        case dict():
            # A zero fraction is omitted, and `online` depends on timing.
            fields = {name: _shape(item) for name, item in sorted(value.items()) if name not in ("nanos", "online")}
            return {name: shape for name, shape in fields.items() if name != "display_name"}
        case list():
            shapes: list[Any] = []
            for item in value:
                shape = _shape(item)
                if shape not in shapes:
                    shapes.append(shape)
            return sorted(shapes, key=str)
    return type(value).__name__


@pytest.fixture
def twins(release: Release, short_folder: Path) -> Iterator[CliTwins]:
    with ExitStack() as stack:
        yield CliTwins(release, short_folder, stack)


def test_real_and_simulated_command_have_the_same_output(twins: CliTwins) -> None:
    """Compare exit status, field names, types and kinds of errors of several commands."""
    named_user = ("--user", twins.user())
    listed = () if twins.minor >= 28 else named_user
    expire = ("--id", "424242") if twins.minor >= 28 else ("nothing", *named_user)
    commands: list[tuple[str, ...]] = [
        ("users", "list"),
        ("nodes", "list"),
        ("preauthkeys", "list", *listed),
        ("preauthkeys", "create", *named_user, "--expiration", "5400123ms"),
        (
            "preauthkeys",
            "create",
            *named_user,
            "--expiration",
            "1h",
            "--reusable",
            "--ephemeral",
            "--tags",
            "tag:a,tag:b",
        ),
        ("preauthkeys", "create", "--user", twins.user("nobody"), "--expiration", "1h"),
        ("preauthkeys", "create", *named_user, "--expiration", "1h", "--tags", "web"),
        ("preauthkeys", "list", *listed),
        ("preauthkeys", "expire", *expire),
        ("nodes", "delete", "--identifier", "424242", "--force"),
        ("nodes", "delete", "--identifier", "1", "--force"),
        ("nodes", "delete", "--identifier", "1", "--force"),
    ]
    different = []
    for command in commands:
        real, simulated = twins.shapes(*command, "-o", "json")
        if real != simulated:
            different.append(f"headscale {' '.join(command)}")
            different += (f"    {line}" for line in differences(real, simulated))
    if different:
        pytest.fail("\n".join(different), pytrace=False)


def test_version_is_detected(workload: Workload, transport: ExecTransport) -> None:
    minor = workload.server.release.minor
    version = transport.version()
    found = {int(found) for found in re.findall(r"0\.(\d+)", version)}
    # A build from the main branch has the version of the previous release, or none: then the help is read.
    assert found & {minor, minor - 1} or (version.endswith("or newer") and max(found) <= minor)
    command = ["headscale", "preauthkeys", "list", "--help"]
    simulated_cli = HeadscaleCli(HeadscaleSimulator(workload.server.release.simulated))
    real, simulated = (run(command).stdout.decode() for run in (real_cli(workload.server), simulated_cli))
    assert dialect.dialect_of_help(real) == dialect.dialect_of_help(simulated)


def test_missing_node_is_not_found(transport: ExecTransport) -> None:
    with pytest.raises(NotFoundError):
        transport.delete_node("424242")
    # After an attempt to delete, an empty list is trusted, too.
    with pytest.raises(NotFoundError):
        transport.node("424242")
