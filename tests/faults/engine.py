"""Run a schedule: the pods of a workload, faults and events around them, and invariants after every step.

The invariants are evaluated on the simulators' tables, independently of the program's rules.
"""

from __future__ import annotations

import json
import random
import shutil
import stat
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from threading import Event
from types import FrameType
from typing import Any, Final

import pytest
import structlog
from structlog.testing import LogCapture

from lifecycle.dns_watch.loop import DnsWatch
from lifecycle.domain.errors import KeyFileError, LifecycleError, NameTakenError, NotRegisteredError, StoppedError
from lifecycle.health.metrics import render_metrics
from lifecycle.keyfile import writer as key_file_writer
from lifecycle.settings.models import Command
from tests.builders import MARK, NAME, OTHER_MARK
from tests.faults.attacks import DECODED_BYTES, compressed_response, failing_output
from tests.faults.schedule import (
    BELIEVABLE,
    COMPRESSED,
    EMPTY_NODE_LIST,
    FAULTS,
    KILLED_WRITING,
    OUT_OF_SIGHT,
    OUTPUT_FAILS,
    Schedule,
    Step,
    UpstreamName,
)
from tests.faults.tap import SECOND_PAGE, Interruption, KilledError, NamedFaults, Request, Tap
from tests.simulators import faults
from tests.simulators import headscale as headscale_simulator
from tests.simulators.cloudflare import ApiError, Record
from tests.simulators.dialects import VERSIONS
from tests.simulators.headscale import NodeGoneError, RegistrationRefusedError
from tests.simulators.messages import Handler
from tests.simulators.upstream import Upstream
from tests.tally import count
from tests.world import USER, Clock, Interface, StopAt, World

VPN: Final = tuple(map(ip_network, ("100.64.0.0/10", "fd7a:115c:a1e0::/48")))

# The time until the world has to be in sync again: several of the longest waits of either loop.
SETTLED_S: Final = 1800.0
# How often this is checked.
CHUNK_S: Final = 60.0

# The module that writes the key, and an upper limit for its lines.
WRITERS: Final = frozenset({"check_writable", "write", "write_metadata", "_replace", "_temporary", "_write_new"})
LINES: Final = 80

# More polls than are made in the minute after which a missing node counts as lost.
POLLS: Final = 20
# The time after an undetectably wrong response in which its consequences are not counted as failures.
MISLED_S: Final = 600.0

MEMORY: Final = Path("/dev/shm")

MAX_TRACED_BYTES: Final = DECODED_BYTES // 2
"""More memory than a pass needs, unless it decodes the whole response."""

LOST_NODE: Final = 0
"""The node id of a pod whose node is not in a restored database. No node has this id."""

RECONNECT_S: Final = 5.0
"""How soon a tailscale client reconnects after its server has restarted."""

RESTART_S: Final = (10.0, 20.0, 40.0, 80.0, 160.0, 300.0)
"""The kubelet's backoff before it restarts a container."""


class BrokenError(AssertionError):
    """An invariant does not hold."""


@dataclass(slots=True)
class Pod:
    """One pod of the workload: a key volume, a tailscale container, and one of our two commands at a time.

    Attributes:
        watch: the sidecar; None while the init container runs, or before its next start.
        due_s: when one of its containers runs next.
        node_id: what its tailscale container registered as; None until then.
        cut_off: it reaches neither service.
        misled_at: when it last got an answer that it could not tell from a right one.
        lives: false once the kubelet has ended it.
    """

    number: int
    folder: Path
    interface: Interface
    shows_interface: bool
    due_s: float
    initialized: bool = False
    watch: DnsWatch | None = None
    stop: Event | None = None
    restarts: int = 0
    node_id: int | None = None
    machine_key: str | None = None
    cut_off: bool = False
    misled_at: float = -MISLED_S
    lives: bool = True

    @property
    def key_file(self) -> Path:
        return self.folder / "authkey"

    @property
    def noted_node(self) -> str | None:
        """The node in the key metadata; None if it has none, or the metadata is missing."""
        note = self.key_file.with_suffix(".id")
        return json.loads(note.read_text())["kept_node_id"] if note.exists() else None

    def show(self, *addresses: str | None) -> None:
        """Set the addresses of the VPN interface."""
        if self.shows_interface:
            self.interface.show(*addresses)


@dataclass(slots=True)
class _Pass:
    """What happened during one run of a command.

    Attributes:
        disturbed: the world changed during the run, or a response was stale.
        unread_changes: ids of records that another owner changed after the last time that this pass read the zone.
    """

    pod: Pod
    requests: list[Request] = field(default_factory=list)
    disturbed: bool = False
    unread_changes: set[str] = field(default_factory=set)
    superseded_at_start: frozenset[int] = frozenset()


class FaultWorld(World):
    """The upstreams, the clock and the pods of one run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, schedule: Schedule, version: str) -> None:
        super().__init__(monkeypatch, folder, version)
        self._loaded: dict[type[Any], Any] = {}
        self.queues: dict[UpstreamName, NamedFaults] = {"headscale": NamedFaults(), "cloudflare": NamedFaults()}
        self.headscale.faults = self.queues["headscale"]
        self.cloudflare.faults = self.queues["cloudflare"]
        self.key_files: dict[str, Path] = {}
        for name, token in (
            ("HEADSCALE_API_KEY", self.headscale.api_key),
            ("CLOUDFLARE_API_TOKEN", self.cloudflare.token),
        ):
            file = folder / name
            file.write_text(token)
            self.key_files[name] = file
            del self.environment[name]
            self.environment[f"{name}_FILE"] = str(file)
        variables = dict(schedule.variables)
        if variables.pop("CLOUDFLARE_ZONE_ID") != "given":
            self.environment["CLOUDFLARE_ZONE_ID"] = ""
        self.environment.update(variables)

    def upstream(self, name: UpstreamName) -> Upstream:
        """Return a simulator by its name."""
        return self.headscale if name == "headscale" else self.cloudflare

    def settings(self, command: type[Command], **variables: str) -> Command:
        """Return a command's settings. All pods share them, apart from their folder."""
        path = Path(variables.pop("AUTHKEY_OUTPUT_PATH"))
        if command not in self._loaded:
            self._loaded[command] = super().settings(command, **variables)
        loaded: Command = self._loaded[command].model_copy(update={"authkey_output_path": path})
        return loaded

    def renew(self, name: str, value: str) -> None:
        """Replace the secret in the file that a setting refers to."""
        self.key_files[name].write_text(value)

    # --- Ownership, evaluated independently of the program ---------------------------------------------

    def is_our_record(self, record: Record) -> bool:
        """Return True if the program may change a record."""
        if record.name != NAME or record.type not in {"A", "AAAA"}:
            return False
        if record.comment:
            return record.comment == MARK
        return any(ip_address(record.content) in prefix for prefix in VPN)

    def is_our_node(self, node: headscale_simulator.Node) -> bool:
        """Return True if the program may change a node."""
        if node.name.casefold() != NAME or node.registered_by != "auth_key":
            return False
        key_user = node.pre_auth_key.user_id if node.pre_auth_key else None
        owner = node.user_id if node.user_id is not None else key_user
        return owner == next(user.id for user in self.headscale.users if user.name == USER)

    @property
    def all_records(self) -> dict[str, Record]:
        """Return every record of the zone, by id."""
        return {record.id: record for record in self.cloudflare.records(self.zone_id)}

    @property
    def our_records(self) -> list[Record]:
        """Return our records of our name."""
        return [record for record in self.cloudflare.records(self.zone_id, NAME) if self.is_our_record(record)]

    @property
    def our_nodes(self) -> list[headscale_simulator.Node]:
        """Return our keys that have not expired."""
        return [node for node in self.headscale.nodes if self.is_our_node(node) and not self.is_expired(node)]

    def is_expired(self, node: headscale_simulator.Node) -> bool:
        """Return True if a node has to log in again."""
        return node.expires_at is not None and node.expires_at <= self.clock.true_now()

    @property
    def blocking(self) -> list[Record]:
        """Return the foreign record of our name that blocks ours, if one exists."""
        ipv6 = self.environment["DNS_IPV6"] == "true"
        kinds = {"A", "CNAME", "NS"} | ({"AAAA"} if ipv6 else set())
        return [
            record
            for record in self.cloudflare.records(self.zone_id, NAME)
            if record.type in kinds and not self.is_our_record(record)
        ]


class Engine:
    """One run of one schedule."""

    def __init__(self, schedule: Schedule, folder: Path, monkeypatch: pytest.MonkeyPatch, events: list[Any]) -> None:
        self.schedule = schedule
        self.folder = folder
        self.events = events
        self.world = FaultWorld(monkeypatch, folder, schedule, schedule.version)
        self.clock: Clock = self.world.clock
        self.interruptions: list[Interruption] = []
        # For each process to be killed while it writes a key: the line.
        self.last_lines: list[int] = []
        self.pods: list[Pod] = []
        self.actor: Pod | None = None
        self.passes: list[_Pass] = []
        self.token_is_right = True
        self._machines = 0
        self.protected_records: dict[str, Record] = {}
        self.protected_nodes: dict[int, headscale_simulator.Node] = {}
        self._before: dict[str, Record] = {}
        self._nodes_before: dict[int, headscale_simulator.Node] = {}
        self._furnish()
        self._backup = self.world.headscale.backup()
        self._output = ExitStack()

    def run(self) -> None:
        """Run all steps, then the recovery."""
        try:
            self._run()
        finally:
            self._output.close()
            tracemalloc.stop()

    def _run(self) -> None:
        self.start_pod()
        for step in self.schedule.steps:
            self._make(step)
            self.go_on(step.wait_s)
        self._end_of_faults()
        self._has_to_settle()
        self._restart_pod()
        self._has_to_settle(quiet=False)
        nodes = self.world.our_nodes
        if len(nodes) != 1:
            raise BrokenError(f"after a clean restart there are {len(nodes)} nodes of ours")
        self._no_secret_is_shown()

    # --- Foreign objects -------------------------------------------------------------------------------

    def _furnish(self) -> None:
        """Add foreign objects, some of which resemble ours."""
        world, headscale = self.world, self.world.headscale
        if world.environment["HEADSCALE_USER"]:
            headscale.add_user("ann")
            headscale.add_node(NAME, user="ann")
            headscale.add_node(NAME.upper(), user="ann", online=False)
            headscale.add_node(NAME, user="ann", tags=("tag:svc",))
        headscale.add_node(NAME, user=USER, registered_by="oidc")
        headscale.add_node(NAME, user=USER, registered_by="cli", online=False)
        headscale.add_node("wiki.example.com", user=USER)
        headscale.add_node(f"x-{NAME}", user=USER)
        world.add_record("100.64.9.1", name="wiki.example.com", comment=MARK)
        world.add_record("100.64.9.2", name=f"x-{NAME}")
        world.add_record("made by hand", type_="TXT", comment=MARK)
        if world.environment["DNS_IPV6"] != "true":
            world.add_record("2001:db8::1", type_="AAAA")
        if self.schedule.crowded:
            for number in range(100):
                world.add_record(f"note {number}", type_="TXT")
        # What an earlier pod left behind.
        old = headscale.add_node(NAME, user=USER, online=False)
        world.add_record(old.address, comment=MARK, ttl=60)
        self._protect()

    def _protect(self) -> None:
        """Remember the foreign objects, which the program must not change."""
        world = self.world
        self.protected_records = {
            record.id: record for record in world.all_records.values() if not world.is_our_record(record)
        }
        self.protected_nodes = {node.id: node for node in world.headscale.nodes if not world.is_our_node(node)}

    def _foreign_is_whole(self) -> None:
        records, world = self.world.all_records, self.world
        for record_id, record in self.protected_records.items():
            if records.get(record_id) != record:
                raise BrokenError(f"Never 1: {record} was foreign and is now {records.get(record_id)}")
        for node_id, node in self.protected_nodes.items():
            now = world.headscale.node(node_id)
            if now is None or (now.expires_at, now.user_id) != (node.expires_at, node.user_id):
                raise BrokenError(f"Never 2: node {node_id} of {node.name} was foreign and is now {now}")

    # --- Pods --------------------------------------------------------------------------------------------

    @property
    def living(self) -> list[Pod]:
        """Return the running pods, oldest first."""
        return [pod for pod in self.pods if pod.lives]

    @property
    def between_passes(self) -> list[Pod]:
        """Return the running pods that are not in the middle of a pass."""
        busy = [this.pod for this in self.passes]
        return [pod for pod in self.living if pod not in busy]

    def start_pod(self) -> Pod:
        """Start another pod of the workload."""
        number = len(self.pods)
        folder = self.folder / f"pod-{number}"
        folder.mkdir()
        shows = bool(self.world.environment["TAILSCALE_INTERFACE"])
        pod = Pod(number, folder, Interface(None), shows, self.clock.elapsed_s)
        self.pods.append(pod)
        return pod

    def end_pod(self, pod: Pod, *, silently: bool = False) -> None:
        """Stop a pod, as the kubelet does or together with its cluster node."""
        pod.lives = False
        if pod.node_id is not None:
            self.world.headscale.disconnect(pod.node_id, silently=silently)

    def go_on(self, seconds: float) -> None:
        """Run the pods for this long."""
        until = self.clock.elapsed_s + seconds
        while True:
            pod = min(self.between_passes, key=lambda pod: (pod.due_s, pod.number), default=None)
            if pod is None or pod.due_s > until:
                break
            self.clock.sleep(max(0.0, pod.due_s - self.clock.elapsed_s))
            self.act(pod)
        self.clock.sleep(max(0.0, until - self.clock.elapsed_s))

    def act(self, pod: Pod) -> None:
        """Run what is due in a pod, once."""
        outer, self.actor = self.actor, pod
        self.passes.append(_Pass(pod, superseded_at_start=self._published_successors(pod)))
        try:
            with self._killed_writing(pod):
                wait_s = self._act(pod)
            self._check_memory()
        except KilledError:
            wait_s = self._container_ended(pod)
        except OSError as error:
            raise BrokenError(f"Never 8: pod {pod.number} ended with a traceback: {error!r}") from error
        finally:
            self.actor = outer
            self.passes.pop()
        # The clock always advances, or this would never end.
        pod.due_s = self.clock.elapsed_s + max(wait_s, 0.001)
        if not self.passes:
            self._after_step()

    @contextmanager
    def _killed_writing(self, pod: Pod) -> Iterator[None]:
        """Kill the process at the chosen line of the module that writes the key. Until then, trace each line."""
        if not self.last_lines or len(self.passes) > 1:
            yield
            return
        lines_left = self.last_lines[0]
        as_it_was = pod.folder.with_suffix(".killed")

        def line_by_line(_frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal lines_left
            if event == "line":
                self._key_files_are_whole()
                lines_left -= 1
                if lines_left == 0:
                    # Exception handlers run for this exception too. Their effects are undone below.
                    if pod.folder.exists():
                        shutil.copytree(pod.folder, as_it_was)
                    raise KilledError
            return line_by_line

        def call(frame: FrameType, _event: str, _argument: object) -> Any:
            code = frame.f_code
            return line_by_line if code.co_filename == key_file_writer.__file__ and code.co_name in WRITERS else None

        before = sys.gettrace()
        sys.settrace(call)
        try:
            yield
        except KilledError:
            if lines_left == 0:
                self.last_lines.pop(0)
                count("kills", "while a key is written")
            if as_it_was.exists():
                shutil.rmtree(pod.folder)
                as_it_was.rename(pod.folder)
            raise
        finally:
            sys.settrace(before)

    def _act(self, pod: Pod) -> float:
        if not pod.initialized:
            return self._cleanup(pod)
        self._tailscale(pod)
        if pod.watch is None:
            pod.watch = self._commands(pod).watch(pod.interface, AUTHKEY_OUTPUT_PATH=str(pod.key_file))
        try:
            wait_s = pod.watch.run_pass()
        except NotRegisteredError:
            self._may_give_up(pod)
            return self._container_ended(pod)
        except LifecycleError as error:
            raise BrokenError(f"Never 8: dns-watch ended: {error}") from error
        self._watch_is_sane(pod, pod.watch)
        if pod.stop is not None and pod.stop.is_set():
            return self._container_ended(pod)
        return wait_s

    def _commands(self, pod: Pod) -> FaultWorld:
        """Return a world whose commands send their requests as this pod."""

        def between(upstream: Upstream) -> Handler:
            return Tap(upstream, watcher=self, interruptions=self.interruptions, cut_off=lambda: pod.cut_off)

        self.world.between = between
        return self.world

    def _cleanup(self, pod: Pod) -> float:
        world = self.world
        pod.stop = StopAt(self.clock)
        cleanup = self._commands(pod).cleanup(pod.stop, AUTHKEY_OUTPUT_PATH=str(pod.key_file))
        fired = world.queues["headscale"].fired
        this = self.passes[-1]
        try:
            cleanup.run()
        except LifecycleError as error:
            headscale_was_well = world.queues["headscale"].fired == fired and not pod.cut_off
            self_made = isinstance(error, StoppedError | KeyFileError | NameTakenError)
            if headscale_was_well and not this.disturbed and not self_made and self._can_be_fulfilled:
                raise BrokenError(f"Never 8: cleanup failed while Headscale was healthy: {error}") from error
            return self._container_ended(pod)
        pod.initialized = True
        pod.restarts = 0
        pod.stop = None
        return 1.0

    @property
    def _can_be_fulfilled(self) -> bool:
        """Return True if no upstream refuses the settings now."""
        return self.token_is_right and not self.clock.skew

    def _container_ended(self, pod: Pod) -> float:
        pod.watch = None
        pod.stop = None
        pod.restarts += 1
        return RESTART_S[min(pod.restarts - 1, len(RESTART_S) - 1)]

    def _tailscale(self, pod: Pod) -> None:
        """Run the tailscale container: register if needed, and restart if the probe fails."""
        headscale = self.world.headscale
        if pod.watch is not None and pod.watch.status.restart_helps:
            self._restart_helps(pod)
            if pod.node_id is not None:
                headscale.disconnect(pod.node_id)
            pod.node_id = None
            pod.show(None)
        if pod.node_id is not None or pod.cut_off:
            return
        if pod.machine_key is None or not self.schedule.kept_state:
            self._machines += 1
            pod.machine_key = f"mkey:{self._machines:064x}"
        with suppress(OSError, RegistrationRefusedError, NodeGoneError):
            node = headscale.register(key=pod.key_file.read_text(), hostname=NAME, machine_key=pod.machine_key)
            headscale.connect(node.id)
            pod.node_id = node.id
            pod.show(*node.addresses)

    # --- Steps -------------------------------------------------------------------------------------------

    def _make(self, step: Step) -> None:
        if step.kind in FAULTS or step.kind == COMPRESSED:
            self._order(step)
        elif step.kind == OUTPUT_FAILS:
            count("faults injected", step.kind)
            self._output.enter_context(failing_output(step.random, self.events))
        elif step.kind == OUT_OF_SIGHT:
            # Without an interface, the list is a pod's only source: a node that was never on it is assumed to have
            # used its key without success, and gets another.
            if not self.world.environment["TAILSCALE_INTERFACE"]:
                return
            queue = self.world.queues["headscale"]
            for path, fault in ((r"/node(\?|$)", faults.lacking(NAME)), (r"/node/\d", faults.html(404))):
                queue.order(step.kind, fault, method="GET", path=path, times=POLLS, after=0)
        elif step.kind == EMPTY_NODE_LIST:
            empty = faults.answer(200, '{"nodes":[]}')
            queue = self.world.queues["headscale"]
            queue.order(step.kind, empty, method="GET", path=r"/node(\?|$)", times=POLLS, after=0)
            for pod in self.living:
                pod.watch = None
        elif step.kind == KILLED_WRITING:
            self.last_lines.append(1 + step.draw % LINES)
        elif step.meanwhile:
            action = partial(self._interrupt, step)
            committed = bool(step.draw % 2)
            self.interruptions.append(
                Interruption(action, self.world.upstream(step.upstream), after=step.after, committed=committed)
            )
        else:
            self._happen(step)

    def _happen(self, step: Step) -> None:
        # Objects that were foreign until now are no longer checked after this.
        self._foreign_is_whole()
        count("events in the middle of a pass" if step.meanwhile else "events", step.kind)
        happening: Callable[[Step], None] = getattr(self, "_" + step.kind.lower().replace(" ", "_"))
        # Events that are impossible now are skipped.
        with suppress(ApiError, NodeGoneError):
            happening(step)
        self._protect()

    def _order(self, step: Step) -> None:
        if step.kind == COMPRESSED:
            fault = compressed_response(twice=step.random.random() < 0.5)
        else:
            fault = FAULTS[step.kind](step.upstream, step.random)
        path = SECOND_PAGE.pattern if step.page_two else None
        method = "GET" if step.kind == "stale read" else step.method
        # A list that is incomplete for one poll has no effect.
        times = POLLS if step.kind == "short list" and step.times > 1 else step.times
        self.world.queues[step.upstream].order(
            step.kind, fault, method=method, path=path, times=times, after=step.after
        )

    def _interrupt(self, step: Step) -> None:
        for this in self.passes:
            this.disturbed = True
        match step.kind:
            case "kill -9":
                count("kills", "at a request")
                raise KilledError
            case "SIGTERM":
                if self.actor is not None:
                    self.actor.stop = self.actor.stop or StopAt(self.clock)
                    self.actor.stop.set()
            case "SIGSTOP":
                # The clock advances for all other processes.
                self.go_on(step.random.choice((5.0, 100.0, 3700.0)))
            case "another pod's pass":
                self._others_act()
            case "volume gone":
                # Not if the metadata is the only thing that distinguishes two pods.
                pod = self.actor
                if pod is not None and pod.shows_interface and pod.folder.exists():
                    count("faults injected", "volume gone")
                    pod.folder.rename(pod.folder.with_suffix(".gone"))
            case _:
                self._happen(step)
                return
        count("interruptions", step.kind)

    def _others_act(self) -> None:
        for pod in self.between_passes:
            if len(self.passes) < 3:
                self.act(pod)

    def _some_record(self, step: Step) -> Record | None:
        ours = self.world.our_records
        return step.random.choice(ours) if ours else None

    def _record_edited(self, step: Step) -> None:
        record = self._some_record(step)
        if record is not None:
            change = step.random.choice(({"content": "100.64.77.7"}, {"ttl": 600}, {"ttl": 1}))
            self.world.cloudflare.change_record(record.id, **change)

    def _record_cleared_of_its_mark(self, step: Step) -> None:
        record = self._some_record(step)
        if record is not None:
            self.world.cloudflare.change_record(record.id, comment="")

    def _record_deleted(self, step: Step) -> None:
        record = self._some_record(step)
        if record is not None:
            self.world.cloudflare.remove_record(record.id)

    def _second_record_added(self, step: Step) -> None:
        self.world.add_record("100.64.88.8", comment=step.random.choice((None, MARK)))

    def _record_taken_over(self, step: Step) -> None:
        record = self._some_record(step)
        if record is not None:
            self.world.cloudflare.change_record(record.id, comment="mine now")
        self._last_change_is_another()

    def _name_taken_by_another_owner(self, step: Step) -> None:
        self.world.add_record("100.64.99.9", comment=OTHER_MARK)
        self._last_change_is_another()

    def _cname_in_the_way(self, step: Step) -> None:
        for record in self.world.our_records:
            self.world.cloudflare.remove_record(record.id)
        self.world.add_record("elsewhere.example.org", type_="CNAME")
        self._last_change_is_another()

    def _last_change_is_another(self) -> None:
        """Make the change twice, so that a stale response also shows the foreign owner."""
        self.world.add_record("later", name="later.example.com", type_="TXT")
        later = self.world.cloudflare.records(self.world.zone_id, "later.example.com")
        self.world.cloudflare.remove_record(later[0].id)

    def _foreign_node_joins(self, step: Step) -> None:
        self.world.headscale.add_node(NAME, user=USER, registered_by=step.random.choice(("oidc", "cli")))

    def _a_node(self, step: Step) -> headscale_simulator.Node | None:
        ours = self.world.our_nodes
        return step.random.choice(ours) if ours else None

    def _node_deleted(self, step: Step) -> None:
        node = self._a_node(step)
        if node is not None:
            self.world.headscale.delete_node(node.id)

    def _node_expired(self, step: Step) -> None:
        node = self._a_node(step)
        if node is not None:
            self.world.headscale.expire_node(node.id)

    def _address_changed(self, step: Step) -> None:
        for pod in self.living:
            if pod.node_id is not None and self.world.headscale.node(pod.node_id) is not None:
                pod.show(*self.world.headscale.readdress(pod.node_id).addresses)
                # The loop polls the interface every second.
                pod.due_s = min(pod.due_s, self.clock.elapsed_s + 1.0)

    def _headscale_restarted(self, step: Step) -> None:
        self.world.headscale.restart()
        self.clock.at(self.clock.elapsed_s + RECONNECT_S, self._reconnect)

    def _headscale_upgraded(self, step: Step) -> None:
        later = VERSIONS[VERSIONS.index(self.world.headscale.version) :][1:2]
        if later:
            self.world.headscale.upgrade(later[0])
            if not self.world.headscale.accepts_api_key:
                self._api_key_renewed(step)
            self.clock.at(self.clock.elapsed_s + RECONNECT_S, self._reconnect)

    def _reconnect(self) -> None:
        for pod in self.living:
            if pod.node_id is not None and not pod.cut_off:
                with suppress(NodeGoneError):
                    self.world.headscale.connect(pod.node_id)

    def _token_renewed(self, step: Step) -> None:
        self.world.renew("CLOUDFLARE_API_TOKEN", self.world.cloudflare.set_token())

    def _api_key_renewed(self, step: Step) -> None:
        self.world.renew("HEADSCALE_API_KEY", self.world.headscale.rotate_api_key())

    def _token_refused(self, step: Step) -> None:
        """Update the file late: the tokens in it are refused for a while."""
        self.token_is_right = False
        self.world.cloudflare.set_token()
        self.world.headscale.rotate_api_key()

    def _clock_jumps(self, step: Step) -> None:
        self.clock.skew = timedelta(seconds=step.random.choice((-7200, -300, 300, 7200, 400 * 86_400)))

    def _partition(self, step: Step) -> None:
        pod = step.random.choice(self.living)
        pod.cut_off = True
        if pod.node_id is not None:
            self.world.headscale.disconnect(pod.node_id, silently=True)

    def _partition_over(self, step: Step) -> None:
        for pod in self.living:
            pod.cut_off = False
        self._reconnect()

    def _pod_restarted(self, step: Step) -> None:
        for pod in self.living:
            self.end_pod(pod, silently=bool(step.draw % 2))
        self.start_pod()

    def _sidecar_restarted(self, step: Step) -> None:
        for pod in self.living:
            pod.watch = None

    def _second_pod(self, step: Step) -> None:
        if len(self.living) < 3:
            self.start_pod()

    def _tailscale_restarted(self, step: Step) -> None:
        pod = step.random.choice(self.living)
        if self.schedule.kept_state and pod.node_id is not None:
            with suppress(NodeGoneError):
                self.world.headscale.connect(pod.node_id)

    def _database_restored(self, step: Step) -> None:
        """The backup is from before the first pod."""
        headscale = self.world.headscale
        current, backup = headscale.backup(), self._backup.copy()
        # The API key of the settings stays valid.
        backup.api_keys = current.api_keys
        backup.last_ids["api_keys"] = current.last_ids["api_keys"]
        headscale.restore(backup)
        for pod in self.pods:
            node = headscale.node(pod.node_id or 0)
            if pod.node_id is not None and (node is None or node.machine_key != pod.machine_key):
                pod.node_id = LOST_NODE
        for _ in range(current.last_ids["nodes"] - backup.last_ids["nodes"]):
            if step.random.random() < 0.5:
                headscale.add_node("laptop.example.com", user=USER)
            else:
                headscale.add_node(NAME, user=USER, registered_by="oidc")
        while headscale.backup().last_ids["keys"] < current.last_ids["keys"]:
            headscale.create_key(USER)

    def _record_changed_during_a_pass(self, step: Step) -> None:
        """Take a record over, or point it at a live node."""
        record = self._some_record(step)
        if record is None:
            return
        live = [node for node in self.world.our_nodes if self.world.headscale.online(node.id)]
        if live and step.draw % 2:
            self.world.cloudflare.change_record(record.id, content=step.random.choice(live).addresses[0], ttl=120)
        else:
            self.world.cloudflare.change_record(record.id, comment="mine now")
        self._last_change_is_another()
        for this in self.passes:
            this.unread_changes.add(record.id)

    def _node_vanishes_silently(self, step: Step) -> None:
        """A cluster node fails: another gets its pod, and Headscale still shows the old node online."""
        self.end_pod(step.random.choice(self.living), silently=True)
        self.start_pod()

    # --- Recovery ------------------------------------------------------------------------------------------

    def _end_of_faults(self) -> None:
        world = self.world
        for queue in world.queues.values():
            queue.clear()
        self.interruptions.clear()
        self.last_lines.clear()
        self.clock.skew = timedelta()
        self.token_is_right = True
        world.renew("CLOUDFLARE_API_TOKEN", world.cloudflare.token)
        world.renew("HEADSCALE_API_KEY", world.headscale.api_key)
        for pod in self.living:
            pod.cut_off = False
            if not pod.folder.exists():
                pod.folder.with_suffix(".gone").rename(pod.folder)
        self._reconnect()

    def _restart_pod(self) -> None:
        for pod in self.living:
            self.end_pod(pod)
        self.go_on(1.0)
        self._clear_the_way()
        before = len(self.pods)
        self.start_pod()
        self.go_on(2.0)
        if not self.pods[before].initialized:
            raise BrokenError("cleanup failed although all faults were over")

    def _clear_the_way(self) -> None:
        """An operator removes the record that blocks ours."""
        for record in self.world.blocking:
            self.world.cloudflare.remove_record(record.id)
        self._protect()

    def _has_to_settle(self, *, quiet: bool = True) -> None:
        """Within a bounded time the world is in sync. It then stays in sync without further writes."""
        until = self.clock.elapsed_s + SETTLED_S
        self.go_on(CHUNK_S)
        if self.world.blocking:
            # Long enough for the longest wait after a failure, and a poll.
            self.go_on(2 * self._quiet_s)
            self._says_what_is_in_the_way()
            self._clear_the_way()
        while True:
            writes = len(self.world.cloudflare.writes)
            wrong = self._wrong()
            if not wrong and not quiet:
                return
            if not wrong:
                self.go_on(self._quiet_s)
                late = [(write.method, write.body) for write in self.world.cloudflare.writes[writes:]]
                wrong = f"Never 7: a write although all was in sync: {late}" if late else self._wrong()
                if not wrong:
                    return
            if self.clock.elapsed_s > until:
                raise BrokenError(wrong)
            self.go_on(CHUNK_S)

    @property
    def _quiet_s(self) -> float:
        """A VERIFY_INTERVAL with its jitter, and a margin."""
        return 400.0 if self.world.environment["VERIFY_INTERVAL"] == "5m" else 160.0

    def _says_what_is_in_the_way(self) -> None:
        for pod in self.living:
            if pod.watch is not None and pod.watch.state.records.in_sync:
                raise BrokenError(
                    f"pod {pod.number} reports the record in sync although {self.world.blocking} blocks it"
                )

    @property
    def rightful(self) -> Pod | None:
        """Return the owner of the record: the pod with the newest node."""
        world = self.world
        alive = {node.id for node in world.our_nodes}
        registered = [pod for pod in self.living if pod.node_id in alive and pod.initialized]
        return max(registered, key=lambda pod: pod.node_id or 0, default=None)

    def _wrong(self) -> str:
        """Return what is out of sync; "" if all is in sync."""
        pod, world = self.rightful, self.world
        if pod is None:
            # No pod is registered. Without a valid key, only a restart of the pod helps.
            if self._has_to_heal():
                return "no pod is registered, and none has healed"
            count("settlements without a node")
            untrue = [each.number for each in self.living if each.watch is not None and each.watch.status.ready]
            return f"pods {untrue} report the record in sync without a node" if untrue else ""
        node = next(node for node in world.our_nodes if node.id == pod.node_id)
        wanted = {node.addresses[0]}
        if world.environment["DNS_IPV6"] == "true":
            wanted.update(node.addresses)
        ours = world.our_records
        good = (
            {record.content for record in ours} == wanted
            and len(ours) == len(wanted)
            and all((record.comment, record.ttl, record.proxied) == (MARK, 60, False) for record in ours)
        )
        if not good:
            states = [(each.number, each.node_id, each.watch and each.watch.status.readiness()) for each in self.living]
            return f"node {node.id} of pod {pod.number} has {wanted}; our records are {ours}; {states}"
        if pod.watch is None or not pod.watch.status.ready:
            reason = pod.watch.state.records.reason if pod.watch else "no sidecar"
            return f"the record is in sync, but pod {pod.number} does not report it: {reason}"
        return ""

    def _has_to_heal(self) -> bool:
        """Return True if a running pod can recover by itself.

        Not a sidecar that started after its node was lost and sees no interface: it cannot know that the node existed.
        Nor one whose node no sidecar has ever seen: it cannot identify the node, and reports that to the operator.
        """
        return self.world.environment["SELF_HEAL"] == "true" and all(
            pod.watch is not None
            and pod.key_file.exists()
            and (pod.watch.state.node is not None or (pod.shows_interface and pod.noted_node is not None))
            for pod in self.living
        )

    # --- Invariants --------------------------------------------------------------------------------------------

    def before(self, upstream: Upstream, method: str, path: str) -> None:
        """Record the state before a request."""
        self._check_memory()
        if upstream is self.world.cloudflare:
            self._before = self.world.all_records
        else:
            self._nodes_before = {node.id: node for node in self.world.headscale.nodes}

    def after(self, request: Request) -> None:
        """Check the effect of a request."""
        if not self.passes:
            return
        this = self.passes[-1]
        if request.fault == COMPRESSED:
            tracemalloc.start()
        if request.is_genuine and request.fault != "stale read" and request.path.endswith("/dns_records"):
            this.unread_changes.clear()
        if request.fault in BELIEVABLE:
            this.disturbed = True
        # After the node was seen once, a list is no evidence: Headscale has to report the node as missing.
        # In that case, the list is the only source for the node that replaced it.
        known = this.pod.watch.state.node if this.pod.watch else None
        knows = known is not None and self.world.headscale.node(int(known.id)) is not None
        if request.fault == "stale read" or (request.fault == OUT_OF_SIGHT and not knows):
            this.pod.misled_at = self.clock.elapsed_s
        if request.is_write:
            self._check_reads_before(this, request)
            if request.upstream is self.world.cloudflare:
                self._record_change_is_good(this, request)
            else:
                self._node_change_is_good(this, request)
                self._key_is_needed(this.pod, request)
        this.requests.append(request)

    def _check_memory(self) -> None:
        """Check how much memory the last response took, if it was one that decodes to a large one."""
        if not tracemalloc.is_tracing():
            return
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        if peak > MAX_TRACED_BYTES:
            raise BrokenError(f"Decoded: a compressed response took {peak >> 20} MiB")

    def _check_reads_before(self, this: _Pass, request: Request) -> None:
        """Never 3: a change is based on complete responses only."""
        looks = [read for read in this.requests if read.method == "GET"]
        nodes = [read for read in looks if read.path == "/api/v1/node"]
        if request.upstream is self.world.cloudflare:
            records = [read for read in looks if read.path.endswith("/dns_records")]
            self._check_genuine(request, _last_list(records))
            if not this.pod.initialized and nodes and nodes[-1].fault == "short list":
                # An empty list, as of a Headscale without nodes: a sidecar that has just started relies on it.
                return
            if this.pod.initialized:
                # A known node is read directly.
                nodes = [read for read in looks if read.path.startswith("/api/v1/node")]
        elif request.method != "DELETE":
            return
        self._check_genuine(request, nodes[-1:])

    def _check_genuine(self, request: Request, reads: list[Request]) -> None:
        if not reads or not all(read.is_genuine for read in reads):
            raise BrokenError(f"Never 3: {request.method} {request.path} after {reads or 'no read'}")

    def _record_change_is_good(self, this: _Pass, request: Request) -> None:
        before, now = self._before, self.world.all_records
        changed = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)}
        if unread := changed & this.unread_changes:
            raise BrokenError(f"Never 1: {request.method} of records {unread}, which changed after they were read")
        if not this.disturbed and self._asks_for_nothing(request, before):
            raise BrokenError(f"Never 7: a write without a difference: {request}")
        pod = this.pod
        for key in changed & now.keys():
            record, old = now[key], before.get(key)
            moved = old is None or old.content != record.content
            if not moved:
                continue
            # Other addresses count too: addresses are reassigned, and the interface shows the current one.
            # An expired node counts, because a pod whose clock is behind cannot know.
            ours = [node for node in self.world.headscale.nodes if self.world.is_our_node(node)]
            addresses = {address for node in ours for address in node.addresses}
            shown = pod.interface.addresses
            its_own = shown is None or ip_address(record.content) in shown
            if not this.disturbed and not (its_own and record.content in addresses):
                raise BrokenError(f"pod {pod.number}, node {pod.node_id}, {shown}, published {record.content}")
            overwritten = this.superseded_at_start & self._published_successors(pod, before)
            if overwritten and not this.disturbed:
                raise BrokenError(f"Never 6: pod {pod.number} (node {pod.node_id}) wrote over nodes {overwritten}")

    def _asks_for_nothing(self, request: Request, before: dict[str, Record]) -> bool:
        """Return True if a request asks for the existing state, whatever its result."""
        body: dict[str, Any] = json.loads(request.body or b"{}")
        patches = body.get("patches", [])
        if request.method == "PATCH":
            patches = [body | {"id": request.path.rpartition("/")[2]}]
        return any(
            patch["id"] in before
            and all(getattr(before[patch["id"]], name) == value for name, value in patch.items() if name != "id")
            for patch in patches
        )

    def _node_change_is_good(self, this: _Pass, request: Request) -> None:
        now = {node.id for node in self.world.headscale.nodes}
        lost = [node for node in self._nodes_before.values() if node.id not in now]
        if lost and this.pod.initialized:
            raise BrokenError(f"dns-watch deleted {lost}")
        for node in lost:
            if not self.world.is_our_node(node):
                raise BrokenError(f"Never 2: {node} is not ours")

    def _key_is_needed(self, pod: Pod, request: Request) -> None:
        """The sidecar creates no key while its node exists or the key in its file is valid."""
        if request.path != "/api/v1/preauthkey" or not pod.initialized:
            return
        count("keys made by dns-watch")
        if self.world.environment["SELF_HEAL"] != "true":
            raise BrokenError(f"pod {pod.number} creates a key although SELF_HEAL is off")
        if self.clock.skew or self._is_misled(pod):
            return
        node = self.world.headscale.node(pod.node_id or 0)
        if node is not None and not self.world.is_expired(node):
            raise BrokenError(f"Never 3: pod {pod.number} creates a key although its node {node.id} exists")
        held = pod.key_file.read_text() if pod.key_file.exists() else ""
        if any(
            key.key == held and not key.used and key.expires_at > self.clock.true_now()
            for key in self.world.headscale.keys
        ):
            raise BrokenError(f"pod {pod.number} creates a key although the one in its file is valid")

    def _is_misled(self, pod: Pod) -> bool:
        """Return True if a pod may still act on an undetectably wrong response."""
        return self.clock.elapsed_s - pod.misled_at < MISLED_S

    def _published_successors(self, pod: Pod, records: dict[str, Record] | None = None) -> frozenset[int]:
        """Return the online nodes of later pods whose address is in a marked record."""
        world = self.world
        contents = {
            record.content
            for record in (world.all_records if records is None else records).values()
            if record.name == NAME and record.comment == MARK
        }
        return frozenset(
            node.id
            for node in world.our_nodes
            if pod.node_id is not None
            and node.id > pod.node_id
            and world.headscale.online(node.id)
            and contents & set(node.addresses)
        )

    def _after_step(self) -> None:
        self._foreign_is_whole()
        self._key_files_are_whole()

    def _key_files_are_whole(self) -> None:
        """Never 4: the key file is absent or complete."""
        # The keys of a database that was replaced by a backup count, too.
        keys = set(self.world.headscale.secrets())
        for pod in self.pods:
            if not pod.key_file.exists():
                continue
            if pod.key_file.read_text() not in keys:
                raise BrokenError(f"Never 4: the key file holds {pod.key_file.read_text()!r}")
            mode = stat.S_IMODE(pod.key_file.stat().st_mode)
            if mode != 0o640:
                raise BrokenError(f"Never 4: the key file has mode {mode:o}")

    def _may_give_up(self, pod: Pod) -> None:
        if self.world.environment["MAX_RETRIES"] == "0":
            raise BrokenError("Never 8: dns-watch gave up with MAX_RETRIES=0")
        if pod.watch is not None and pod.watch.state.node is not None:
            raise BrokenError("Never 8: dns-watch gave up after its node had registered")

    def _watch_is_sane(self, pod: Pod, watch: DnsWatch) -> None:
        status = watch.status
        if not status.alive:
            raise BrokenError(f"pod {pod.number}: /livez fails although the loop makes progress")

    def _restart_helps(self, pod: Pod) -> None:
        """The probe restarts a VPN only if it does not work and a valid key exists."""
        node = self.world.headscale.node(pod.node_id or 0)
        if node is not None and not self.world.is_expired(node) and not self._is_misled(pod):
            raise BrokenError(f"pod {pod.number}: /nodez is 503 although node {node.id} exists")
        now = self.clock.true_now()
        held = [key for key in self.world.headscale.keys if key.key == pod.key_file.read_text()]
        if not self.clock.skew and not any(key.expires_at > now and not key.used for key in held):
            raise BrokenError(f"pod {pod.number}: /nodez is 503 although the key in the file is invalid: {held}")

    def _no_secret_is_shown(self) -> None:
        """Never 5: no output contains a secret."""
        world = self.world
        shown = [repr(self.events)]
        for pod in self.pods:
            if pod.watch is not None:
                shown += [render_metrics(pod.watch.status, accept="")[1].decode(), repr(pod.watch.status)]
            # The key file and its temporary file may contain the key.
            shown += [file.read_text() for file in pod.folder.glob("*") if file.name not in {"authkey", ".authkey.tmp"}]
        shown += [f"{request.path}?{request.query}" for request in world.headscale.requests + world.cloudflare.requests]
        everything = "\n".join(shown)
        for secret in world.headscale.secrets() + world.cloudflare.secrets():
            count("secrets searched")
            if secret in everything:
                at = everything.index(secret)
                raise BrokenError(f"Never 5: the output contains a secret: {everything[max(0, at - 200) : at]}…")


def _last_list(reads: list[Request]) -> list[Request]:
    """Return the last response to each page of the last list."""
    begun = max((number for number, read in enumerate(reads) if read.page == "1"), default=len(reads))
    return list({read.page: read for read in reads[begun:]}.values())


@contextmanager
def captured() -> Iterator[list[Any]]:
    """Capture all log events of the block."""
    capture = LogCapture()
    structlog.configure(processors=[capture], wrapper_class=structlog.BoundLogger, cache_logger_on_first_use=False)
    try:
        yield capture.entries
    finally:
        structlog.reset_defaults()


def run(schedule: Schedule) -> None:
    """Run one schedule.

    Raises:
        BrokenError: an invariant did not hold.
    """
    count("schedules")
    # In memory if possible, because each key is synced to the disk.
    folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
    chance = random.getstate()
    random.seed(schedule.seed)
    try:
        with pytest.MonkeyPatch.context() as monkeypatch, captured() as events:
            Engine(schedule, folder, monkeypatch, events).run()
    finally:
        random.setstate(chance)
        shutil.rmtree(folder)


def shrunk(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """Omit every step without which the schedule still fails."""
    number = 0
    while number < len(schedule.steps):
        shorter = schedule.without(number)
        if fails(shorter):
            schedule = shorter
        else:
            number += 1
    return schedule
