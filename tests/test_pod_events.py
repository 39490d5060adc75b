"""Kubernetes Events about the pod: from which log events, how often, and that no failure has an effect."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from documented_events import EVENTS

from lifecycle.apply import EventRecorder
from lifecycle.clients.http import HttpClient
from lifecycle.clients.kubernetes.events import EventWriter
from lifecycle.domain.errors import ConfigError
from lifecycle.domain.events import Event, error, info, warning
from lifecycle.domain.pod_events import NOTES, pod_event
from lifecycle.runtime.logs import listening, log_event
from tests.builders import MARK, NAME, NOW, OTHER_MARK
from tests.in_cluster import MEMORY_URL, memory_access
from tests.pod.rendering import DEPLOY, of_kind, render
from tests.simulators import faults
from tests.simulators.kubernetes import SERVICE_ACCOUNT, KubernetesSimulator
from tests.simulators.memory import MemoryClient
from tests.world import USER, Clock, Interface, World, named

NAMESPACE = SERVICE_ACCOUNT.split(":")[2]
PATH = rf"/namespaces/{NAMESPACE}/events"
HANGS_AFTER_S = 60.0

[ROLE] = of_kind(render(DEPLOY / "rbac/events"), "Role")

LOST = error("node.lost", node_id="7", reason="it is gone", advice="Restart the pod.")
RETURNED = info("node.returned", after="gone")


class MemoryEventWriter(EventWriter):
    """A writer of Events of a simulator in this process."""

    def __init__(self, kubernetes: KubernetesSimulator) -> None:
        self._pod = None
        self._access = memory_access(kubernetes)
        self._client = MemoryClient(kubernetes.handle, MEMORY_URL)
        self._http = HttpClient(self._client, upstream=self._access.upstream, timeout=timedelta(seconds=10))


class Recording:
    """A recorder on a clock of its own, and what it writes."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.kubernetes = KubernetesSimulator()
        self.kubernetes.allow(NAMESPACE, *ROLE["rules"])
        self.pauses: list[float] = []
        self.recorder = EventRecorder(lambda: MemoryEventWriter(self.kubernetes), now=self.clock.now, pause=self._pause)

    def record(self, *events: Event) -> None:
        for event in events:
            self.recorder.record(event)
        self.recorder.flush(HANGS_AFTER_S)

    @property
    def shown(self) -> list[tuple[str, int]]:
        """The reason of each Event, and how often it has occurred."""
        return [
            (event["reason"], (event.get("series") or {"count": 1})["count"])
            for event in self.kubernetes.events.values()
        ]

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.sleep(seconds)


@pytest.fixture
def recording() -> Recording:
    return Recording()


class TestNotes:
    """Which log events become Events, and their text."""

    @pytest.mark.parametrize("name", NOTES)
    def test_every_field_of_a_note_is_logged(self, name: str) -> None:
        level = EVENTS[name].levels[0]
        event = pod_event(Event(level, name, dict.fromkeys(EVENTS[name].keys, "x")))
        assert event is not None
        assert event.type == ("Normal" if level == "info" else "Warning")

    def test_other_log_events_are_not_shown(self) -> None:
        assert pod_event(info("pass.finished", in_sync=True)) is None

    def test_note_is_one_printable_line_that_is_short_enough(self) -> None:
        event = pod_event(warning("node.superseded", successor_id="8", reason="a\n\x1b[31m" + "é" * 2000))
        assert event is not None
        assert event.note.isprintable()
        assert 1000 < len(event.note.encode()) <= 1024

    def test_time_is_written_to_the_second(self) -> None:
        event = pod_event(warning("api_key.expiring", expires_at=NOW, days_left=3, advice="x"))
        assert event is not None
        assert "2026-03-01T12:00:00Z" in event.note


class TestRecorder:
    """What reaches the API server."""

    def test_event_is_about_this_pod(self, recording: Recording) -> None:
        recording.record(LOST)
        [event] = recording.kubernetes.events.values()
        name, uid = recording.kubernetes.token_pod or ("", "")
        assert event["regarding"] == {
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": NAMESPACE,
            "name": name,
            "uid": uid,
        }
        assert (event["type"], event["reason"]) == ("Warning", "NodeLost")
        assert "Restart the pod." in event["note"]

    def test_repetition_is_counted_and_written_every_five_minutes_at_most(self, recording: Recording) -> None:
        recording.record(LOST, LOST, LOST)
        assert recording.shown == [("NodeLost", 1)]
        recording.clock.sleep(300.0)
        recording.record(LOST)
        assert recording.shown == [("NodeLost", 4)]
        assert len(recording.kubernetes.writes) == 3  # the review of the token, the Event, the series

    def test_different_notes_are_different_events(self, recording: Recording) -> None:
        recording.record(LOST, RETURNED, error("node.lost", node_id="9", reason="it is gone", advice=""))
        assert recording.shown == [("NodeLost", 1), ("NodeReturned", 1), ("NodeLost", 1)]

    def test_event_that_the_server_has_deleted_is_created_again(self, recording: Recording) -> None:
        recording.record(LOST)
        recording.kubernetes.events.clear()
        recording.clock.sleep(3600.0)
        recording.record(LOST)
        assert recording.shown == [("NodeLost", 1)]

    def test_memory_is_bounded(self, recording: Recording) -> None:
        for number in range(200):
            recording.record(info("node.returned", after=str(number)))
        assert len(recording.shown) == 200
        recording.clock.sleep(300.0)
        recording.record(info("node.returned", after="0"), info("node.returned", after="199"))
        # The oldest is forgotten and counts from 1 again.
        assert recording.shown[199:] == [("NodeReturned", 2), ("NodeReturned", 1)]


class TestFailures:
    """Each failure is one line of the log until an Event is written again, and nothing else."""

    def test_missing_permission_is_not_retried(self, recording: Recording, events: list[Any]) -> None:
        recording.kubernetes.allow_nothing()
        recording.record(LOST, RETURNED)
        assert (recording.shown, recording.pauses) == ([], [])
        [line] = named(events, "kubernetes_event.failed")
        assert 'apiGroups: ["events.k8s.io"], resources: [events], verbs: [create, patch]' in line["error"]

    @pytest.mark.parametrize(
        ("fault", "pauses"),
        [
            pytest.param(faults.refuse(), [0.5, 1.0, 2.0, 4.0, 8.0], id="server-is-down"),
            pytest.param(faults.html(502), [0.5, 1.0, 2.0, 4.0, 8.0], id="server-fails"),
            pytest.param(faults.answer(429, headers={"Retry-After": "7"}), [7.0, 7.0, 7.0, 7.0, 8.0], id="rate-limit"),
            pytest.param(faults.answer(429, headers={"Retry-After": "9000"}), [300.0] * 5, id="long-rate-limit"),
        ],
    )
    def test_outage_is_retried_for_a_limited_time(
        self, recording: Recording, events: list[Any], fault: Any, pauses: list[float]
    ) -> None:
        recording.kubernetes.faults.add(fault, times=5)
        recording.record(LOST)
        assert (recording.shown, recording.pauses) == ([], pauses)
        assert len(named(events, "kubernetes_event.failed")) == 1

    def test_event_is_written_once_the_server_is_back(self, recording: Recording, events: list[Any]) -> None:
        recording.record(RETURNED)
        recording.kubernetes.faults.add(faults.html(502), path=PATH, times=2)
        recording.record(LOST)
        assert recording.shown == [("NodeReturned", 1), ("NodeLost", 1)]
        recording.kubernetes.allow_nothing()
        recording.record(error("node.lost", node_id="9", reason="", advice=""))
        assert len(named(events, "kubernetes_event.failed")) == 2

    def test_token_that_is_not_a_pods_is_reported(self, recording: Recording, events: list[Any]) -> None:
        recording.kubernetes.token_pod = None
        recording.record(LOST)
        assert recording.shown == []
        [line] = named(events, "kubernetes_event.failed")
        assert "KUBERNETES_EVENTS" in line["error"]

    def test_missing_service_account_is_reported(self, events: list[Any]) -> None:
        def connect() -> EventWriter:
            raise ConfigError("no service account")

        recorder = EventRecorder(connect)
        recorder.record(LOST)
        recorder.flush(HANGS_AFTER_S)
        assert [line["error"] for line in named(events, "kubernetes_event.failed")] == ["no service account"]

    def test_recording_without_another_thread(self, recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(_thread: Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(Thread, "start", refuse)
            recording.recorder.record(LOST)
        recording.record(RETURNED)
        assert recording.shown == [("NodeLost", 1), ("NodeReturned", 1)]

    def test_recording_never_waits(self, recording: Recording) -> None:
        recording.kubernetes.faults.add(faults.hang(), times=None)
        for number in range(1000):
            recording.recorder.record(info("node.returned", after=str(number)))
        recording.recorder.flush(0.0)
        assert recording.shown == []
        recording.kubernetes.faults.release()


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """The reasons of the Events that would be written."""
    reasons: list[str] = []

    def listen(event: Event) -> None:
        found = pod_event(event)
        if found is not None:
            reasons.append(found.reason)

    with listening(listen):
        yield reasons


class TestCommands:
    """What the commands report."""

    @pytest.fixture
    def world(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> World:
        return World(monkeypatch, tmp_path)

    def test_record_is_created_and_updated(self, world: World, heard: list[str]) -> None:
        node = world.headscale.add_node(NAME, user=USER)
        world.run(world.watch(Interface(node.address)), 60)
        world.add_record("100.64.0.99", name="wiki.example.com", comment=MARK)
        wiki = world.headscale.add_node("wiki.example.com", user=USER)
        world.run(world.watch(Interface(wiki.address), TS_HOSTNAME="wiki.example.com"), 60)
        assert heard == ["RecordCreated", "RecordUpdated"]

    def test_foreign_record(self, world: World, heard: list[str]) -> None:
        node = world.headscale.add_node(NAME, user=USER)
        world.add_record("203.0.113.7", comment=OTHER_MARK)
        world.run(world.watch(Interface(node.address)), 60)
        assert set(heard) == {"RecordForeign"}

    def test_superseded(self, world: World, heard: list[str]) -> None:
        old, new = (world.headscale.add_node(NAME, user=USER) for _ in range(2))
        world.add_record(new.address, ttl=60, comment=MARK)
        world.run(world.watch(Interface(old.address)), 60)
        assert heard == ["NodeSuperseded"]

    def test_foreign_node_of_cleanup(self, world: World, heard: list[str]) -> None:
        world.headscale.add_user("ann")
        world.headscale.add_node(NAME, user="ann")
        world.cleanup(HEADSCALE_USER=USER).run()
        assert heard == ["NodeForeign"]

    def test_log_level_has_no_effect(self, heard: list[str]) -> None:
        log_event(RETURNED)
        assert heard == ["NodeReturned"]
