"""Run a schedule, which is a sequence of faults and events.

The commands of a workload's pods run on a simulated clock, with simulated upstreams. workload.py defines the pods and
the upstreams, events.py the events, and invariants.py the checks. "Never 1" to "Never 8" are the guarantees in
docs/architecture.md. A pass is one run of `cleanup`, or one iteration of the loop of `dns-watch`. A node or record is
ours if the program may change it, and foreign if it may not.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest
import structlog
from structlog.testing import LogCapture

from lifecycle.domain.errors import KeyFileError, LifecycleError, NameTakenError, NotRegisteredError, StoppedError
from lifecycle.keyfile import writer as key_file_writer
from tests.builders import COMMENT_AT_FURTHER_NAMES, NAME, OUR_COMMENT
from tests.faults.events import Events
from tests.faults.invariants import BrokenError, Invariants
from tests.faults.schedule import (
    COMPRESSED,
    EMPTY_NODE_LIST,
    FAULTS,
    HIDDEN_NODES,
    KILLED_WRITING,
    NO_ITEMS,
    OUTPUT_FAILS,
    Schedule,
    Step,
)
from tests.faults.special_faults import compressed_response, failing_output
from tests.faults.tap import SECOND_PAGE, Interruption, KilledError, Tap
from tests.faults.workload import APEX, SHARED, SIBLING_COMMENT, Pass, Pod, Workload
from tests.simulators import faults
from tests.simulators.headscale import NodeGoneError, RegistrationRefusedError
from tests.simulators.messages import Handler
from tests.simulators.upstream import Upstream
from tests.tally import add_to_count
from tests.world import MIN_WAIT_S, USER, StopAt, restart_backoff_s

RECOVERY_S: Final = 1800.0
"""The time within which everything must be in sync after the last fault: several times the longest backoff."""

CHECK_INTERVAL_S: Final = 60.0
"""The time between two checks of whether everything is in sync."""

KEY_WRITING_FUNCTIONS: Final = frozenset(
    {"check_writable", "write", "write_metadata", "_replace", "_temporary", "_write_new"}
)
"""Names of the functions in keyfile/writer.py that run while a key is written."""

MAX_LINES: Final = 80
"""A process is killed before one of the first MAX_LINES lines that it executes in these functions."""

MANY_REQUESTS: Final = 20
"""The number of requests that a fault affects if it must last until dns-watch treats a missing node as lost."""

MEMORY_FOLDER: Final = Path("/dev/shm")
"""A file system in memory, on Linux."""


class Engine:
    """One run of one schedule."""

    def __init__(
        self, schedule: Schedule, folder: Path, monkeypatch: pytest.MonkeyPatch, log_events: list[Any]
    ) -> None:
        self.schedule = schedule
        self.workload = Workload(schedule, folder, monkeypatch)
        self.world = self.workload.world
        self.clock = self.workload.clock
        self.invariants = Invariants(self.workload, log_events)
        self._log_events = log_events
        self._interruptions: list[Interruption] = []
        # One number for each process that will be killed while it writes a key: how many lines it executes until then.
        self._lines_until_kill: list[int] = []
        self._running_pod: Pod | None = None
        self._machine_count = 0
        self._add_foreign_objects()
        self._events = Events(self.workload)
        self._output = ExitStack()

    def run(self) -> None:
        """Run all steps, end all faults, and check that everything gets in sync."""
        try:
            self._run()
        finally:
            self._output.close()
            tracemalloc.stop()

    def _run(self) -> None:
        self.workload.start_pod()
        for step in self.schedule.steps:
            self._start_step(step)
            self.run_for(step.wait_s)
        self._end_faults()
        self._check_recovery()
        self._restart_workload()
        self._check_recovery(stays_in_sync=False)
        nodes = self.world.our_nodes
        if len(nodes) != 1:
            raise BrokenError(f"after a restart without faults, the workload has {len(nodes)} nodes instead of one")
        self.invariants.check_secrets()

    def _add_foreign_objects(self) -> None:
        """Add nodes and records that the program must not change, and the node and record of an earlier pod."""
        world, headscale = self.world, self.world.headscale
        # Without this setting, Headscale must have only one user.
        if world.environment["HEADSCALE_USER"]:
            headscale.add_user("ann")
            headscale.add_node(NAME, user="ann")
            headscale.add_node(NAME.upper(), user="ann", online=False)
            headscale.add_node(NAME, user="ann", tags=("tag:svc",))
        headscale.add_node(NAME, user=USER, registered_by="oidc")
        headscale.add_node(NAME, user=USER, registered_by="cli", online=False)
        headscale.add_node("wiki.example.com", user=USER)
        headscale.add_node(f"x-{NAME}", user=USER)
        world.add_record("100.64.9.1", name="wiki.example.com", comment=OUR_COMMENT)
        world.add_record("100.64.9.2", name=f"x-{NAME}")
        # The program owns only A, AAAA and CNAME records, so this record is foreign although it has our comment.
        world.add_record("made by hand", type_="TXT", comment=OUR_COMMENT)
        if world.environment["DNS_IPV6"] != "true":
            world.add_record("2001:db8::1", type_="AAAA")
        if world.has_further_names:
            # SHARED is a name of several workloads. SIBLING_COMMENT is the comment of the records of another workload.
            world.add_record("100.64.9.1", name=SHARED, comment=SIBLING_COMMENT)
            world.add_record("wiki.example.com", name="old-wiki.example.com", type_="CNAME", comment=SIBLING_COMMENT)
            world.add_record("made by hand", name=SHARED, type_="TXT", comment=COMMENT_AT_FURTHER_NAMES)
            world.add_record("mail.example.com", name=APEX, type_="MX", priority=10)
            # The comment of a workload whose name only ends with ours.
            world.add_record("100.64.9.3", name="x.example.com", comment=f"{OUR_COMMENT} x{NAME}")
            # The record of an alias that the workload had earlier. This record is ours, unlike the records above.
            world.add_record(NAME, name="old.example.com", type_="CNAME", comment=COMMENT_AT_FURTHER_NAMES)
        if self.schedule.many_records:
            for number in range(100):
                world.add_record(f"note {number}", type_="TXT")
        old = headscale.add_node(NAME, user=USER, online=False)
        world.add_record(old.address, comment=OUR_COMMENT, ttl=60)
        self.invariants.remember_foreign_objects()

    # --- Pods --------------------------------------------------------------------------------------------

    def run_for(self, seconds: float) -> None:
        """Run the pods for this long. Each pass runs when it is due."""
        until = self.clock.elapsed_s + seconds
        while True:
            pod = min(self.workload.pods_between_passes, key=lambda pod: (pod.due_s, pod.number), default=None)
            if pod is None or pod.due_s > until:
                break
            self.clock.sleep(max(0.0, pod.due_s - self.clock.elapsed_s))
            self.run_pod(pod)
        self.clock.sleep(max(0.0, until - self.clock.elapsed_s))

    def run_pod(self, pod: Pod) -> None:
        """Run the command or the pass that is due in a pod."""
        # During a request of one pod, another pod can run, so calls of this method can be nested.
        interrupted_pod, self._running_pod = self._running_pod, pod
        self.workload.running_passes.append(Pass(pod, successors_at_start=self.workload.published_successors(pod)))
        try:
            with self._kill_at_line(pod):
                wait_s = self._run_due(pod)
            self.invariants.check_memory()
        except KilledError:
            wait_s = self._container_ended(pod)
        except OSError as error:
            raise BrokenError(f"Never 8: pod {pod.number} ended with a traceback: {error!r}") from error
        finally:
            self._running_pod = interrupted_pod
            self.workload.running_passes.pop()
        pod.due_s = self.clock.elapsed_s + max(wait_s, MIN_WAIT_S)
        if not self.workload.running_passes:
            self.invariants.check_foreign_objects()
            self.invariants.check_key_files()

    @contextmanager
    def _kill_at_line(self, pod: Pod) -> Iterator[None]:
        """Kill the pod's process while it writes a key, if a step of the schedule requires it.

        Check the key files before each line of the code that writes the key.
        """
        if not self._lines_until_kill or len(self.workload.running_passes) > 1:
            yield
            return
        lines_left = self._lines_until_kill[0]
        snapshot = pod.folder.with_suffix(".killed")

        def trace_line(_frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal lines_left
            if event == "line":
                self.invariants.check_key_files()
                lines_left -= 1
                if lines_left == 0:
                    # A real kill runs no exception handlers. The exception below runs the program's handlers, which may
                    # change files. This copy is used to undo their changes.
                    if pod.folder.exists():
                        shutil.copytree(pod.folder, snapshot)
                    raise KilledError
            return trace_line

        def trace_call(frame: FrameType, _event: str, _argument: object) -> Any:
            code = frame.f_code
            return (
                trace_line
                if code.co_filename == key_file_writer.__file__ and code.co_name in KEY_WRITING_FUNCTIONS
                else None
            )

        previous_trace = sys.gettrace()
        sys.settrace(trace_call)
        try:
            yield
        except KilledError:
            if lines_left == 0:
                self._lines_until_kill.pop(0)
                add_to_count("kills", "while a key is written")
            if snapshot.exists():
                shutil.rmtree(pod.folder)
                snapshot.rename(pod.folder)
            raise
        finally:
            sys.settrace(previous_trace)

    def _run_due(self, pod: Pod) -> float:
        """Run `cleanup`, or one pass of `dns-watch`. Return the seconds until the pod is due again."""
        if not pod.initialized:
            return self._run_cleanup(pod)
        self._run_tailscale(pod)
        if pod.watch is None:
            self._tap_requests_of(pod)
            pod.watch = self.world.watch(pod.interface, AUTHKEY_OUTPUT_PATH=str(pod.key_file))
        try:
            wait_s = pod.watch.run_pass()
        except NotRegisteredError:
            self.invariants.check_may_give_up(pod)
            return self._container_ended(pod)
        except LifecycleError as error:
            raise BrokenError(f"Never 8: dns-watch ended: {error}") from error
        self.invariants.check_livez(pod, pod.watch)
        if pod.stop is not None and pod.stop.is_set():
            return self._container_ended(pod)
        return wait_s

    def _tap_requests_of(self, pod: Pod) -> None:
        """Let the commands that are created from now on send their requests through a `Tap` for this pod."""

        def route(upstream: Upstream) -> Handler:
            return Tap(
                upstream, watcher=self.invariants, interruptions=self._interruptions, is_cut_off=lambda: pod.cut_off
            )

        self.world.route = route

    def _run_cleanup(self, pod: Pod) -> float:
        world = self.world
        pod.stop = StopAt(self.clock)
        self._tap_requests_of(pod)
        cleanup = world.cleanup(pod.stop, AUTHKEY_OUTPUT_PATH=str(pod.key_file))
        faults_before = world.fault_queues["headscale"].injected
        current = self.workload.running_passes[-1]
        try:
            cleanup.run()
        except LifecycleError as error:
            headscale_was_healthy = world.fault_queues["headscale"].injected == faults_before and not pod.cut_off
            is_expected = isinstance(error, StoppedError | KeyFileError | NameTakenError)
            if (
                headscale_was_healthy
                and not current.disturbed
                and not is_expected
                and self.workload.credentials_are_valid
                and not self.clock.skew
            ):
                raise BrokenError(f"Never 8: cleanup failed while Headscale was healthy: {error}") from error
            return self._container_ended(pod)
        pod.initialized = True
        pod.exits = 0
        pod.stop = None
        # After a second, the kubelet has started the next containers.
        return 1.0

    def _container_ended(self, pod: Pod) -> float:
        """Reset the state of an ended container, and return the seconds until the kubelet restarts it."""
        pod.watch = None
        pod.stop = None
        pod.exits += 1
        return restart_backoff_s(pod.exits)

    def _run_tailscale(self, pod: Pod) -> None:
        """Simulate the tailscale container: restart it if dns-watch requests it, and register a missing node."""
        headscale = self.world.headscale
        if pod.watch is not None and pod.watch.status.restart_helps:
            self.invariants.check_restart_helps(pod)
            if pod.node_id is not None:
                headscale.disconnect(pod.node_id)
            pod.node_id = None
            pod.set_addresses(None)
        if pod.node_id is not None or pod.cut_off:
            return
        if pod.machine_key is None or not self.schedule.keeps_machine_key:
            self._machine_count += 1
            pod.machine_key = f"mkey:{self._machine_count:064x}"
        with suppress(OSError, RegistrationRefusedError, NodeGoneError):
            node = headscale.register(key=pod.key_file.read_text(), hostname=NAME, machine_key=pod.machine_key)
            headscale.connect(node.id)
            pod.node_id = node.id
            pod.set_addresses(*node.addresses)

    # --- Steps -------------------------------------------------------------------------------------------

    def _start_step(self, step: Step) -> None:
        if step.kind in FAULTS or step.kind == COMPRESSED:
            self._inject_fault(step)
        elif step.kind == OUTPUT_FAILS:
            add_to_count("faults injected", step.kind)
            self._output.enter_context(failing_output(step.random, self._log_events))
        elif step.kind == HIDDEN_NODES:
            # Skip this fault if `dns-watch` cannot read the VPN interface. It then relies on the list alone, and
            # correctly creates another key if the list lacks its node. The checks would report this key.
            if not self.world.environment["TAILSCALE_INTERFACE"]:
                return
            queue = self.world.fault_queues["headscale"]
            for path, fault in ((r"/node(\?|$)", faults.omit_items(NAME)), (r"/node/\d", faults.html(404))):
                queue.add(replace(fault, name=step.kind), method="GET", path=path, times=MANY_REQUESTS)
        elif step.kind == EMPTY_NODE_LIST:
            empty = replace(faults.answer(200, '{"nodes":[]}'), name=step.kind)
            self.world.fault_queues["headscale"].add(empty, method="GET", path=r"/node(\?|$)", times=MANY_REQUESTS)
            # Restart all sidecars, so that they have not read a node yet.
            for pod in self.workload.running_pods:
                pod.watch = None
        elif step.kind == KILLED_WRITING:
            self._lines_until_kill.append(1 + step.seed % MAX_LINES)
        elif step.during_pass:
            assert step.upstream is not None
            action = partial(self._interrupt, step)
            after_execution = bool(step.seed % 2)
            self._interruptions.append(
                Interruption(
                    action, self.world.upstream(step.upstream), skip=step.after, after_execution=after_execution
                )
            )
        else:
            self._execute_event(step)

    def _execute_event(self, step: Step) -> None:
        # An event may change foreign objects, so first check that the program has not changed them before.
        self.invariants.check_foreign_objects()
        add_to_count("events in the middle of a pass" if step.during_pass else "events", step.kind)
        self._events.execute(step)
        self.invariants.remember_foreign_objects()

    def _inject_fault(self, step: Step) -> None:
        assert step.upstream is not None
        if step.kind == COMPRESSED:
            fault = compressed_response(twice=step.random.random() < 0.5)
        else:
            fault = FAULTS[step.kind](step.upstream, step.random)
        path = SECOND_PAGE.pattern if step.second_page else None
        # dns-watch ignores a single list without items, so a longer fault affects many requests.
        times = MANY_REQUESTS if step.kind == NO_ITEMS and step.times > 1 else step.times
        self.world.fault_queues[step.upstream].add(
            replace(fault, name=step.kind), method=step.method, path=path, times=times, after=step.after
        )

    def _interrupt(self, step: Step) -> None:
        for current in self.workload.running_passes:
            current.disturbed = True
        match step.kind:
            case "kill -9":
                add_to_count("kills", "at a request")
                raise KilledError
            case "SIGTERM":
                if self._running_pod is not None:
                    self._running_pod.stop = self._running_pod.stop or StopAt(self.clock)
                    self._running_pod.stop.set()
            case "SIGSTOP":
                # The stopped process does nothing, while the other pods run for some time.
                self.run_for(step.random.choice((5.0, 100.0, 3700.0)))
            case "another pod's pass":
                self._run_other_pods()
            case "volume gone":
                # Remove the volume only if `dns-watch` can read the VPN interface. Otherwise, it needs the key metadata
                # on the volume to distinguish its node from those of other pods.
                pod = self._running_pod
                if pod is not None and pod.has_interface and pod.folder.exists():
                    add_to_count("faults injected", "volume gone")
                    pod.folder.rename(pod.folder.with_suffix(".gone"))
            case _:
                self._execute_event(step)
                return
        add_to_count("interruptions", step.kind)

    def _run_other_pods(self) -> None:
        for pod in self.workload.pods_between_passes:
            if len(self.workload.running_passes) < 3:
                self.run_pod(pod)

    # --- Recovery ------------------------------------------------------------------------------------------

    def _end_faults(self) -> None:
        world = self.world
        for queue in world.fault_queues.values():
            queue.clear()
        self._interruptions.clear()
        self._lines_until_kill.clear()
        self.clock.skew = timedelta()
        self.workload.credentials_are_valid = True
        world.write_secret("CLOUDFLARE_API_TOKEN", world.cloudflare.token)
        world.write_secret("HEADSCALE_API_KEY", world.headscale.api_key)
        for pod in self.workload.running_pods:
            pod.cut_off = False
            if not pod.folder.exists():
                pod.folder.with_suffix(".gone").rename(pod.folder)
        self.workload.reconnect()

    def _restart_workload(self) -> None:
        for pod in self.workload.running_pods:
            self.workload.end_pod(pod)
        self.run_for(1.0)
        self._remove_blocking_records()
        pod = self.workload.start_pod()
        self.run_for(2.0)
        if not pod.initialized:
            raise BrokenError("cleanup failed although all faults were over")

    def _remove_blocking_records(self) -> None:
        """Remove the foreign records that prevent the program from writing its own, as an operator would do."""
        for record in self.world.blocking_records:
            self.world.cloudflare.remove_record(record.id)
        self.invariants.remember_foreign_objects()

    def _check_recovery(self, *, stays_in_sync: bool = True) -> None:
        """Check that everything gets in sync within RECOVERY_S.

        Args:
            stays_in_sync: True to also check that everything stays in sync without further writes.
        """
        until = self.clock.elapsed_s + RECOVERY_S
        self.run_for(CHECK_INTERVAL_S)
        if self.world.blocking_records:
            # Wait until a backoff has ended, and for one more pass of dns-watch.
            self.run_for(2 * self._more_than_verify_interval_s)
            self._check_blocked_record_is_reported()
            self._remove_blocking_records()
        while True:
            writes = len(self.world.cloudflare.writes)
            problem = self.invariants.out_of_sync()
            if not problem and not stays_in_sync:
                return
            if not problem:
                self.run_for(self._more_than_verify_interval_s)
                needless = [(write.method, write.body) for write in self.world.cloudflare.writes[writes:]]
                problem = (
                    f"Never 7: a write although everything was in sync: {needless}"
                    if needless
                    else self.invariants.out_of_sync()
                )
                if not problem:
                    return
            if self.clock.elapsed_s > until:
                raise BrokenError(problem)
            self.run_for(CHECK_INTERVAL_S)

    @property
    def _more_than_verify_interval_s(self) -> float:
        """A time that is longer than VERIFY_INTERVAL (5 or 2 minutes) with its jitter of 25 %."""
        return 400.0 if self.world.environment["VERIFY_INTERVAL"] == "5m" else 160.0

    def _check_blocked_record_is_reported(self) -> None:
        """Check that no pod reports the record as in sync while a foreign record blocks it."""
        for pod in self.workload.running_pods:
            if pod.watch is not None and pod.watch.state.records.in_sync:
                raise BrokenError(
                    f"pod {pod.number} reports the record in sync although {self.world.blocking_records} blocks it"
                )


@contextmanager
def captured_log_events() -> Iterator[list[Any]]:
    """Yield a list to which all log events of the block are added."""
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
    add_to_count("schedules")
    # Use a folder in memory if possible. On a disk, the tests would be slower, because the program syncs each key file.
    folder = Path(tempfile.mkdtemp(dir=MEMORY_FOLDER if MEMORY_FOLDER.is_dir() else None))
    random_state = random.getstate()
    random.seed(schedule.seed)
    try:
        with pytest.MonkeyPatch.context() as monkeypatch, captured_log_events() as log_events:
            Engine(schedule, folder, monkeypatch, log_events).run()
    finally:
        random.setstate(random_state)
        shutil.rmtree(folder)


def shrunk(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """Return the schedule without the steps that are not necessary for the failure."""
    number = 0
    while number < len(schedule.steps):
        shorter = schedule.without(number)
        if fails(shorter):
            schedule = shorter
        else:
            number += 1
    return schedule
