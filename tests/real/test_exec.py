"""Headscale's real command line, run in a pod that stands beside the real server: a pod's life, and the stand-in."""

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
from tests.real.machine import Machine
from tests.real.programs import PATIENCE_S, Release, eventually
from tests.real.server import HeadscaleServer
from tests.real.service import NAMESPACE, OTHER_USER, USER, Service
from tests.real.test_life import (  # the same life, through the command line
    test_dry_run,
    test_no_note,
    test_node_of_a_person,
    test_pod_is_replaced,
    test_unknown_user,
)
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.headscale_cli import Finished, HeadscaleCli
from tests.simulators.kubernetes import ExecFault, KubernetesSimulator
from tests.simulators.serve import serve

__all__ = [
    "test_dry_run",
    "test_no_note",
    "test_node_of_a_person",
    "test_pod_is_replaced",
    "test_unknown_user",
]

STATE_SECRET: Final = "app-tailscale"
KEEP: Final = {"NODE_POLICY": "keep", "TS_KUBE_SECRET": STATE_SECRET}

Program = Callable[[Sequence[str]], Finished]


def real_cli(server: HeadscaleServer) -> Program:
    """The server's own command line, on its own socket."""

    def run(argv: Sequence[str]) -> Finished:
        done = subprocess.run(
            server.argv(*argv[1:]),
            env={"PATH": os.environ["PATH"], "HOME": str(server.folder)},
            cwd=server.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE_S,
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
    """A cluster in which the real server runs, as one pod of a StatefulSet."""
    kubernetes = KubernetesSimulator()
    kubernetes.add_pod("headscale-0", {"headscale": {"headscale": real_cli(server)}}, namespace=HEADSCALE_NAMESPACE)
    kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
    kubernetes.allow(NAMESPACE, may_read(STATE_SECRET))
    return kubernetes


@pytest.fixture
def service(
    service: Service, kubernetes: KubernetesSimulator, authority: Authority, short_folder: Path
) -> Iterator[Service]:
    """A service that has nothing but a namespace to find Headscale by."""
    account = short_folder / "serviceaccount"
    account.mkdir()
    (account / "ca.crt").write_bytes(authority.certificate.read_bytes())
    (account / "token").write_text(kubernetes.token)
    (account / "namespace").write_text(NAMESPACE)
    with serve(kubernetes, tls=authority.server) as url:
        host, _, port = url.removeprefix("https://").partition(":")
        for name in ("HEADSCALE_URL", "HEADSCALE_API_KEY"):
            del service.environment[name]
        service.environment |= {
            "HEADSCALE_NAMESPACE": HEADSCALE_NAMESPACE,
            "KUBERNETES_SERVICE_HOST": host,
            "KUBERNETES_SERVICE_PORT": port,
        }
        service.within = with_service_account(account)
        yield service


@pytest.fixture
def transport(kubernetes: KubernetesSimulator) -> Iterator[ExecTransport]:
    with serve(kubernetes) as url, cluster_at(url, kubernetes, timeout_s=PATIENCE_S) as cluster:
        yield exec_transport(cluster, lambda: datetime.now(UTC))


def publish(service: Service, **settings: str) -> None:
    """Put the record right, once."""
    ended = service.run("dns-watch", "--once", **settings)
    assert (ended.exit_status, ended.errors) == (0, ""), ended.out + ended.errors


# --- Keeping the node ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "auth_once"),
    [pytest.param("", True, id="key-not-shown-again"), pytest.param("tag:web", False, id="tagged-and-key-shown-again")],
)
def test_a_kept_node_comes_back_with_its_address_and_its_record_needs_no_write(
    tags: str, auth_once: bool, service: Service, kubernetes: KubernetesSimulator
) -> None:
    """The pod is replaced, its state survives: the same node, the same address, nothing written to the zone."""
    settings = KEEP | {"AUTHKEY_TAGS": tags}
    [told] = named(service.cleanup(**settings).events, "node.not_kept")
    assert "Secret does not exist" in told["reason"]
    machine = service.machine()
    # As tailscale's container notes it, once it runs.
    kubernetes.put_secret(NAMESPACE, STATE_SECRET, {"device_id": machine.status()["Self"]["ID"]})
    publish(service, AUTHKEY_TAGS=tags)
    ids, address, written = service.ids, machine.address, len(service.cloudflare.writes)
    assert (service.contents, len(ids)) == ([address], 1)
    machine.stop()

    [kept] = named(service.cleanup(**settings).events, "node.kept")
    assert ([kept["node_id"]], service.ids) == (ids, ids)
    machine.start()
    if not auth_once:
        machine.up(service.key_file)
    publish(service, AUTHKEY_TAGS=tags)
    assert (service.ids, machine.address) == (ids, address)
    assert (service.contents, len(service.cloudflare.writes)) == ([address], written)


def test_the_kept_nodes_double_goes(service: Service, kubernetes: KubernetesSimulator) -> None:
    service.cleanup()
    machine = service.machine()
    kubernetes.put_secret(NAMESPACE, STATE_SECRET, {"device_id": machine.status()["Self"]["ID"]})
    [kept] = service.ids
    service.machine(key_file=service.write_key(service.server.create_key(USER))).stop()
    assert len(service.ids) == 2
    service.cleanup(**KEEP)
    assert service.ids == [kept]


def test_a_kept_node_that_was_deleted_comes_back_with_the_fresh_key(
    service: Service, kubernetes: KubernetesSimulator
) -> None:
    """Its Secret still names it: it is replaced, and the same state registers anew."""
    service.cleanup()
    machine = service.machine()
    kubernetes.put_secret(NAMESPACE, STATE_SECRET, {"device_id": machine.status()["Self"]["ID"]})
    [old] = service.ids
    machine.stop()
    service.server.delete_node(old)
    [told] = named(service.cleanup(**KEEP).events, "node.not_kept")
    assert f"no node {old} any more" in told["reason"]
    machine.start()
    machine.up(service.key_file)
    # A client that comes back believes in its old node until it was told otherwise.
    [new] = eventually(lambda: service.ids or None, "the client to be let in")
    assert new != old


def test_a_node_with_a_key_of_tags_alone_stays_where_it_can_come_back(
    service: Service, kubernetes: KubernetesSimulator
) -> None:
    """Not on 0.28, which lets such a node never in again: there it is replaced."""
    minor = service.server.release.minor
    if minor < 28:
        pytest.skip("every key has a user before 0.28: nothing to install, run it on 0.28 or newer")
    key = service.server.cli("preauthkeys", "create", "--tags", "tag:web", "--expiration", "1h")["key"]
    machine = service.machine(key_file=service.write_key(key))
    kubernetes.put_secret(NAMESPACE, STATE_SECRET, {"device_id": machine.status()["Self"]["ID"]})
    [old] = service.ids
    machine.stop()
    service.cleanup(**KEEP, AUTHKEY_TAGS="tag:web")
    assert service.ids == ([] if minor == 28 else [old])
    machine.start()
    machine.up(service.key_file)
    [new] = eventually(lambda: service.ids or None, "the client to be let in")
    assert (new == old) is (minor != 28)


# --- Lost answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [ExecFault(cut_after=7), ExecFault(status=False)], ids=["cut", "no-status"])
def test_a_new_key_whose_answer_was_lost_is_made_useless(
    fault: ExecFault, service: Service, kubernetes: KubernetesSimulator
) -> None:
    """From 0.28 on; before that the command line would want to be shown the key, and it is left to expire."""
    before = _key_ids(service)
    kubernetes.spoil(fault, "preauthkeys create")
    ended = service.cleanup()
    hidden, made = sorted(_key_ids(service) - before, key=int)
    by_id = service.server.release.minor >= 28
    [told] = named(ended.events, "pre_auth_key.expired" if by_id else "pre_auth_key.expire_failed")
    assert told["key_id"] == hidden
    keys = {key["id"]: key for key in service.server.keys()}  # noqa: SIM118 - no dictionary
    assert (keys[hidden]["expiration"] < keys[made]["createdAt"]) is by_id
    service.machine()


def _key_ids(service: Service) -> set[str]:
    return {key["id"] for key in service.server.keys()}  # noqa: SIM118 - no dictionary


def test_a_server_that_is_down_is_worth_another_try(service: Service, transport: ExecTransport) -> None:
    """The command line is there, and the server behind its socket is not."""
    service.server.stop()
    try:
        with pytest.raises(TransientError, match="`headscale nodes list` failed"):
            transport.nodes()
    finally:
        service.server.start()
    transport.nodes()


# --- The stand-in -------------------------------------------------------------------------------------


class CliTwins:
    """The real command line and the stand-in, on servers that hold the same users, keys and nodes."""

    def __init__(self, release: Release, folder: Path, stack: ExitStack) -> None:
        server = stack.enter_context(HeadscaleServer(release, folder))
        simulator = HeadscaleSimulator(release.simulated)
        self.by_id = release.user_by_id
        self.minor = release.minor
        self.real = real_cli(server)
        self.stand_in = HeadscaleCli(simulator)
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
        """How a user is named on the command line."""
        return {USER: "1", OTHER_USER: "2"}.get(name, "4242") if self.by_id else name

    def shapes(self, *arguments: str) -> list[Any]:
        """What both write, as shapes."""
        return [shape_of(run(["headscale", *arguments])) for run in (self.real, self.stand_in)]


def shape_of(finished: Finished) -> Any:
    """Exit status, and the names and types of what was written; of an error only its kind."""
    stdout = finished.stdout.decode()
    reason = finished.stderr.decode()
    kind = re.search(r"code = (\w+)|unexpected response status|unknown flag|invalid argument", reason)
    return (finished.exit_status, _shape(json.loads(stdout)) if stdout.strip() else "", kind[0] if kind else reason)


def _shape(value: Any) -> Any:
    match value:
        case dict():
            # A fraction of zero is left out; who is online is a matter of moments.
            shown = {name: _shape(item) for name, item in sorted(value.items()) if name not in ("nanos", "online")}
            return {name: shape for name, shape in shown.items() if name != "display_name"}
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


def test_the_stand_in_writes_what_the_real_one_writes(twins: CliTwins) -> None:
    """Command after command: exit status, field names, types, and what kind of error."""
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
        real, stand_in = twins.shapes(*command, "-o", "json")
        if real != stand_in:
            different.append(f"headscale {' '.join(command)}\n  real     {real}\n  stand-in {stand_in}")
    assert not different, "\n".join(different)


def test_the_version_is_read(service: Service, transport: ExecTransport) -> None:
    minor = service.server.release.minor
    told = transport.version()
    # A build from the main branch calls itself after the release before it.
    assert int(told.split(".")[1]) in (minor, minor - 1)
    asked = ["headscale", "preauthkeys", "list", "--help"]
    stand_in = HeadscaleCli(HeadscaleSimulator(service.server.release.simulated))
    real, simulated = (run(asked).stdout.decode() for run in (real_cli(service.server), stand_in))
    assert dialect.dialect_of_help(real) == dialect.dialect_of_help(simulated)


def test_no_such_node_is_headscales_own_word(transport: ExecTransport) -> None:
    with pytest.raises(NotFoundError):
        transport.delete_node("424242")
    # Once a deletion was tried, a list without any node counts, too.
    with pytest.raises(NotFoundError):
        transport.node("424242")
