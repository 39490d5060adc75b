"""Test the Kubernetes Events about the pod: which log events create them, and that a failure has no other effect.

In comments, an "Event" is an object of the Kubernetes API, and an "event" or "log event" is what the program logs. The
class `Event` is a log event.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from documented_events import EVENTS

from lifecycle.apply import EventRecorder
from lifecycle.clients.kubernetes.events import EventWriter
from lifecycle.domain.errors import ConfigError
from lifecycle.domain.events import Event, error, info, warning
from lifecycle.domain.pod_events import NOTES, pod_event
from lifecycle.runtime.logs import listening
from tests.builders import NAME, NOW, OUR_COMMENT
from tests.in_cluster import memory_access
from tests.pod.rendering import DEPLOY, of_kind, render
from tests.simulators import faults
from tests.simulators.kubernetes import SERVICE_ACCOUNT, KubernetesSimulator
from tests.threads import refused_threads
from tests.world import USER, Clock, Interface, World, events_named

NAMESPACE = SERVICE_ACCOUNT.split(":")[2]
PATH = rf"/namespaces/{NAMESPACE}/events"
# A thread that does not end within this time hangs, however slow the machine is.
HANG_TIMEOUT_S = 60.0

[ROLE] = of_kind(render(DEPLOY / "rbac/events"), "Role")

LOST = error("node.lost", node_id="7", reason="it is gone", advice="Restart the pod.")
RETURNED = info("node.returned", after="gone")


class Recording:
    """A recorder of Events with a simulated clock and API server.

    Attributes:
        pauses: the pauses between attempts to write an Event, in seconds.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.kubernetes = KubernetesSimulator()
        self.kubernetes.allow(NAMESPACE, *ROLE["rules"])
        self.pauses: list[float] = []
        self.recorder = EventRecorder(
            lambda: EventWriter(memory_access(self.kubernetes), timeout=timedelta(seconds=10)),
            now=self.clock.now,
            pause=self._pause,
        )

    def record(self, *events: Event) -> None:
        """Record log events, and wait until their Events have been written."""
        for event in events:
            self.recorder.record(event)
        self.recorder.flush(HANG_TIMEOUT_S)

    @property
    def reasons(self) -> list[str]:
        """Return the reason of each Event in the API."""
        return [event["reason"] for event in self.kubernetes.events.values()]

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.sleep(seconds)


@pytest.fixture
def recording() -> Recording:
    return Recording()


class TestNotes:
    """Tests of which log events create an Event, and of the Event's text, which Kubernetes calls the note."""

    @pytest.mark.parametrize("name", NOTES)
    def test_note_needs_only_documented_keys_of_the_log_event(self, name: str) -> None:
        level = EVENTS[name].levels[0]
        event = pod_event(Event(level, name, dict.fromkeys(EVENTS[name].keys, "x")))
        assert event is not None
        assert event.type == ("Normal" if level == "info" else "Warning")

    def test_other_log_events_create_no_kubernetes_event(self) -> None:
        assert pod_event(info("pass.finished", in_sync=True)) is None

    def test_note_is_printable_and_at_most_1024_bytes_long(self) -> None:
        event = pod_event(warning("node.superseded", superseded_by="8", reason="a\n\x1b[31m" + "é" * 2000))
        assert event is not None
        assert event.note.isprintable()
        assert 1000 < len(event.note.encode()) <= 1024

    def test_time_is_written_to_the_second(self) -> None:
        event = pod_event(warning("api_key.expiring", expires_at=NOW, days_left=3, advice="x"))
        assert event is not None
        assert "2026-03-01T12:00:00Z" in event.note


class TestRecorder:
    """The Events that are written to the API server."""

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

    def test_repeated_event_is_written_once_an_hour(self, recording: Recording) -> None:
        """By default, the API server deletes an Event after an hour."""
        recording.record(LOST, LOST)
        recording.clock.sleep(3599.0)
        recording.record(LOST)
        assert recording.reasons == ["NodeLost"]
        recording.clock.sleep(1.0)
        recording.record(LOST)
        assert recording.reasons == ["NodeLost", "NodeLost"]

    def test_different_notes_are_different_events(self, recording: Recording) -> None:
        recording.record(LOST, RETURNED, error("node.lost", node_id="9", reason="it is gone", advice=""))
        assert recording.reasons == ["NodeLost", "NodeReturned", "NodeLost"]


class TestFailures:
    """A failure is only logged, and only once until an Event is written."""

    def test_missing_permission_is_not_retried(self, recording: Recording, events: list[Any]) -> None:
        recording.kubernetes.allow_nothing()
        recording.record(LOST, RETURNED)
        assert (recording.reasons, recording.pauses) == ([], [])
        [line] = events_named(events, "kubernetes_event.failed")
        assert 'apiGroups: ["events.k8s.io"], resources: [events], verbs: [create]' in line["error"]

    @pytest.mark.parametrize(
        ("fault", "pauses"),
        [
            pytest.param(faults.refuse(), [0.5, 1.0, 2.0, 4.0, 8.0], id="connection-refused"),
            pytest.param(faults.html(502), [0.5, 1.0, 2.0, 4.0, 8.0], id="502"),
            pytest.param(faults.answer(429, headers={"Retry-After": "7"}), [7.0, 7.0, 7.0, 7.0, 8.0], id="rate-limit"),
            pytest.param(faults.answer(429, headers={"Retry-After": "9000"}), [300.0] * 5, id="long-rate-limit"),
        ],
    )
    def test_failed_request_is_retried_four_times(
        self, recording: Recording, events: list[Any], fault: Any, pauses: list[float]
    ) -> None:
        # A pause is the longer of Retry-After and the backoff, up to 300 s. The last pause is before the next Event.
        recording.kubernetes.faults.add(fault, times=5)
        recording.record(LOST)
        assert (recording.reasons, recording.pauses) == ([], pauses)
        assert len(events_named(events, "kubernetes_event.failed")) == 1

    def test_event_is_written_after_a_short_outage_and_each_outage_is_logged(
        self, recording: Recording, events: list[Any]
    ) -> None:
        recording.record(RETURNED)
        recording.kubernetes.faults.add(faults.html(502), path=PATH, times=2)
        recording.record(LOST)
        assert recording.reasons == ["NodeReturned", "NodeLost"]
        recording.kubernetes.faults.add(faults.html(502), path=PATH, times=2)
        recording.record(error("node.lost", node_id="9", reason="", advice=""))
        assert len(events_named(events, "kubernetes_event.failed")) == 2

    def test_event_that_is_not_written_again_does_not_end_an_outage(
        self, recording: Recording, events: list[Any]
    ) -> None:
        recording.record(RETURNED)
        recording.kubernetes.faults.add(faults.html(403), path=PATH, times=None)
        recording.record(LOST)
        recording.record(RETURNED)
        recording.record(error("node.lost", node_id="9", reason="", advice=""))
        assert recording.reasons == ["NodeReturned"]
        assert len(events_named(events, "kubernetes_event.failed")) == 1

    def test_token_that_is_not_bound_to_a_pod_is_reported(self, recording: Recording, events: list[Any]) -> None:
        recording.kubernetes.token_pod = None
        recording.record(LOST)
        assert recording.reasons == []
        [line] = events_named(events, "kubernetes_event.failed")
        assert "KUBERNETES_EVENTS" in line["error"]

    def test_missing_service_account_is_reported(self, events: list[Any]) -> None:
        def connect() -> EventWriter:
            raise ConfigError("no service account")

        recorder = EventRecorder(connect)
        recorder.record(LOST)
        recorder.flush(HANG_TIMEOUT_S)
        assert [line["error"] for line in events_named(events, "kubernetes_event.failed")] == ["no service account"]

    def test_events_are_kept_if_no_thread_can_be_started(self, recording: Recording) -> None:
        with refused_threads():
            recording.recorder.record(LOST)
        recording.record(RETURNED)
        assert recording.reasons == ["NodeLost", "NodeReturned"]

    def test_recording_does_not_wait_for_the_server(self, recording: Recording) -> None:
        recording.kubernetes.faults.add(faults.hang(), times=None)
        for number in range(1000):
            recording.recorder.record(info("node.returned", after=str(number)))
        recording.recorder.flush(0.0)
        assert recording.reasons == []
        recording.kubernetes.faults.release()


@pytest.fixture
def reasons() -> Iterator[list[str]]:
    """Return the reasons of the Events that would be written."""
    reasons: list[str] = []

    def listen(event: Event) -> None:
        kubernetes_event = pod_event(event)
        if kubernetes_event is not None:
            reasons.append(kubernetes_event.reason)

    with listening(listen):
        yield reasons


class TestCommands:
    """Tests of the Events that `cleanup` and `dns-watch` create."""

    def test_event_is_created_for_each_change_of_a_record(self, world: World, reasons: list[str]) -> None:
        node = world.headscale.add_node(NAME, user=USER)
        world.run(world.watch(Interface(node.address)), 60)
        world.add_record("100.64.0.99", name="wiki.example.com", comment=OUR_COMMENT)
        wiki = world.headscale.add_node("wiki.example.com", user=USER)
        world.run(world.watch(Interface(wiki.address), TS_HOSTNAME="wiki.example.com"), 60)
        assert reasons == ["RecordCreated", "RecordUpdated"]

    def test_event_is_created_if_a_later_pod_has_the_name(self, world: World, reasons: list[str]) -> None:
        old, new = (world.headscale.add_node(NAME, user=USER) for _ in range(2))
        world.add_record(new.address, ttl=60, comment=OUR_COMMENT)
        world.run(world.watch(Interface(old.address)), 60)
        assert reasons == ["NodeSuperseded"]

    def test_event_is_created_for_a_foreign_node(self, world: World, reasons: list[str]) -> None:
        world.headscale.add_user("ann")
        world.headscale.add_node(NAME, user="ann")
        world.cleanup(HEADSCALE_USER=USER).run()
        assert reasons == ["NodeForeign"]
