"""Test the report of a dry run: its text and JSON formats, and the changes that it lists."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from lifecycle import report as reports
from lifecycle.dry_run import cleanup_section, read_context, watch_section
from lifecycle.report import Report, Section, Step
from lifecycle.runtime.retry import no_retries
from lifecycle.settings.models import DryRunSettings
from tests.builders import COMMENT_OF_OTHER_OWNER, NAME, OUR_COMMENT
from tests.simulators import faults
from tests.simulators.cloudflare import INVALID_TOKEN, refusal
from tests.world import USER, Interface, World

COLOR = re.compile(r"\x1b\[[0-9;]*m")

REPORT = Report(
    context={"headscale": "http://headscale", "headscale_version": None, "name": NAME},
    sections=[
        Section(
            "cleanup",
            steps=[
                Step("delete", "node", "node 1 (a)", "it was left by an earlier pod", {"node_id": "1"}),
                Step("create", "pre_auth_key", "a pre-auth key", "every start needs one", {"user": "svc"}),
            ],
            notes=["node 2 stays"],
        ),
        Section("dns-watch", problems=["Cloudflare returned 502"]),
        Section("another"),
    ],
)

TEXT = f"""\
headscale          http://headscale
headscale version  could not be read
name               {NAME}

lifecycle cleanup would
  delete node 1 (a)
      because it was left by an earlier pod
  create a pre-auth key
      because every start needs one
  note: node 2 stays

lifecycle dns-watch would
  problem: Cloudflare returned 502

lifecycle another would
  change nothing

Nothing was changed.
"""


def text_of(report: Report, *, colors: bool = False) -> str:
    return reports.to_text(report, colors=colors)


def json_of(report: Report) -> Any:
    return json.loads(json.dumps(reports.to_json_values(report)))


class TestFormat:
    """The format of a report."""

    def test_text(self) -> None:
        assert text_of(REPORT) == TEXT

    def test_text_with_colors(self) -> None:
        colored = text_of(REPORT, colors=True)

        assert COLOR.sub("", colored) == TEXT
        assert "\x1b[31mdelete\x1b[0m node 1" in colored
        assert "\x1b[32mcreate\x1b[0m a pre-auth key" in colored
        assert "\x1b[31mproblem:\x1b[0m" in colored
        # Each color is reset.
        assert len(re.findall(r"\x1b\[0m", colored)) * 2 == len(COLOR.findall(colored))

    def test_json(self) -> None:
        assert json_of(REPORT) == {
            "context": {"headscale": "http://headscale", "headscale_version": None, "name": NAME},
            "plans": {
                "cleanup": {
                    "changes": [
                        {
                            "action": "delete",
                            "kind": "node",
                            "what": "node 1 (a)",
                            "reason": "it was left by an earlier pod",
                            "node_id": "1",
                        },
                        {
                            "action": "create",
                            "kind": "pre_auth_key",
                            "what": "a pre-auth key",
                            "reason": "every start needs one",
                            "user": "svc",
                        },
                    ],
                    "notes": ["node 2 stays"],
                    "problems": [],
                },
                "dns-watch": {"changes": [], "notes": [], "problems": ["Cloudflare returned 502"]},
                "another": {"changes": [], "notes": [], "problems": []},
            },
        }

    @pytest.mark.parametrize("character", ["\x1b", "\n", "\r", "\x00", "\x9b", "\u202e", "\x07"])
    def test_control_characters_are_escaped(self, character: str) -> None:
        """Comments, hostnames and user names can contain any character."""

        def report_with(value: str) -> Report:
            section = Section("cleanup", [Step("delete", "node", value, value)], notes=[value], problems=[value])
            return Report(context={"user": value}, sections=[section])

        unsafe = f"a{character}[31mproblem: b"
        for colors in (True, False):
            text = text_of(report_with(unsafe), colors=colors)
            safe_text = text_of(report_with("a"), colors=colors)
            assert text.count("\n") == safe_text.count("\n")
            assert text.count(character) == safe_text.count(character)
        assert json_of(report_with(unsafe))["plans"]["cleanup"]["notes"] == [unsafe]


NO_INTERFACE = Interface(None)


def dry_run_in(world: World, interface: Interface = NO_INTERFACE, **variables: str) -> Report:
    """Return the report of a dry run, after a check that the report contains no secret."""
    settings = world.settings(DryRunSettings, **variables)
    writers = world.writers(settings, no_retries())
    now = world.clock.now()
    sections = [
        cleanup_section(settings, writers, None, now=now),
        watch_section(settings, writers, interface(), now=now),
    ]
    report = Report(read_context(settings, writers, None), sections)
    output = text_of(report) + json.dumps(json_of(report))
    for secret in [*world.headscale.secrets(), world.headscale.api_key, world.cloudflare.token]:
        assert secret not in output
    return report


def section(report: Report, command: str) -> Section:
    """Return the section of a command."""
    return next(section for section in report.sections if section.command == command)


def steps(report: Report, command: str) -> list[tuple[str, str]]:
    """Return the action and the kind of each step in the section of a command."""
    return [(step.action, step.kind) for step in section(report, command).steps]


class TestDryRun:
    """The content of a report in different states of the pod, Headscale and the zone."""

    def test_context_names_the_servers_and_the_owner(self, world: World) -> None:
        assert dry_run_in(world).context == {
            "kubernetes": "not used (no setting needs it)",
            "headscale": "http://headscale",
            "headscale_version": "0.28.0",
            "user": USER,
            "zone": "example.com",
            "name": NAME,
            "owner": OUR_COMMENT,
        }

    def test_only_a_key_is_planned_if_there_was_no_earlier_pod(self, world: World) -> None:
        report = dry_run_in(world)

        assert not report.problems
        assert steps(report, "cleanup") == [("create", "pre_auth_key"), ("write", "file")]
        assert steps(report, "dns-watch") == []
        assert any("would wait" in note for note in section(report, "dns-watch").notes)

    def test_node_and_record_of_an_earlier_pod_are_planned_for_deletion(self, world: World) -> None:
        node = world.headscale.add_node(NAME, user=USER, online=False)
        world.add_record(node.address, comment=OUR_COMMENT)

        report = dry_run_in(world)

        assert steps(report, "cleanup") == [
            ("delete", "node"),
            ("create", "pre_auth_key"),
            ("write", "file"),
            ("delete", "record"),
        ]
        node_step, key_step, file_step, record_step = section(report, "cleanup").steps
        assert node_step.details == {"node_id": str(node.id)}
        assert "offline" in node_step.what
        assert key_step.details == {"user": USER}
        assert file_step.details == {"path": str(world.key_file)}
        assert record_step.details == {"record": NAME, "type": "A", "content": node.address}
        assert all(step.reason for step in section(report, "cleanup").steps)

    def test_cleanup_does_what_the_dry_run_planned(self, world: World) -> None:
        for online in (True, False):
            node = world.headscale.add_node(NAME, user=USER, online=online)
            world.add_record(node.address, comment=OUR_COMMENT)
        world.headscale.add_node(NAME, user=world.headscale.add_user("ann").name)
        world.add_record("100.64.0.99", type_="TXT")
        planned = section(dry_run_in(world, HEADSCALE_USER=USER), "cleanup").steps

        before = {str(node.id) for node in world.headscale.nodes}
        world.cleanup(HEADSCALE_USER=USER).run()

        deleted = before - {str(node.id) for node in world.headscale.nodes}
        assert deleted == {step.details["node_id"] for step in planned if step.kind == "node"}
        assert set(world.records()) == {"TXT 100.64.0.99"}
        assert len([step for step in planned if step.kind == "record"]) == 2

    def test_foreign_node_is_reported(self, world: World) -> None:
        world.headscale.add_user("ann")
        node = world.headscale.add_node(NAME, user="ann")

        report = dry_run_in(world, HEADSCALE_USER=USER)

        assert ("delete", "node") not in steps(report, "cleanup")
        [note] = section(report, "cleanup").notes
        assert f"node {node.id} stays" in note
        assert "user ann" in note

    @pytest.mark.parametrize(
        ("content", "comment", "expected"),
        [
            pytest.param(None, "", [("create", "record")], id="no-record"),
            pytest.param("100.64.0.99", OUR_COMMENT, [("update", "record")], id="old-address"),
            pytest.param("100.64.0.99", "", [("update", "record")], id="old-address-without-a-comment"),
        ],
    )
    def test_change_of_the_record_is_planned(
        self, world: World, content: str | None, comment: str, expected: list[tuple[str, str]]
    ) -> None:
        node = world.headscale.add_node(NAME, user=USER)
        if content is not None:
            world.add_record(content, comment=comment)

        report = dry_run_in(world, Interface(node.address))

        assert steps(report, "dns-watch") == expected
        [step] = section(report, "dns-watch").steps
        assert step.details["content"] == node.address
        assert step.details.get("was") == content
        assert f"node is {node.id}" in section(report, "dns-watch").notes[0]

    def test_addresses_outside_the_vpn_do_not_identify_the_node(self, world: World) -> None:
        node = world.headscale.add_node(NAME, user=USER, addresses=("10.9.0.1",))

        report = dry_run_in(world, Interface(node.address, "fe80::1"))

        [note] = section(report, "dns-watch").notes
        assert "would wait" in note
        assert "VPN_PREFIXES" in note

    def test_update_is_shown_with_the_differing_fields(self, world: World) -> None:
        node = world.headscale.add_node(NAME, user=USER)
        world.add_record(node.address, comment="", ttl=300)

        [step] = section(dry_run_in(world, Interface(node.address)), "dns-watch").steps

        assert step.what == f"A {NAME} -> {node.address}: ttl, comment"

    def test_update_of_the_key_metadata_is_planned(self, world: World) -> None:
        world.cleanup().run()
        node = world.headscale.register(key=world.key, hostname=NAME)

        report = dry_run_in(world, Interface(*node.addresses))

        assert steps(report, "dns-watch") == [("write", "file"), ("create", "record")]
        assert section(report, "dns-watch").steps[0].details == {"path": f"{world.key_file}.id"}

    def test_foreign_record_is_reported_with_advice(self, world: World) -> None:
        node = world.headscale.add_node(NAME, user=USER)
        world.add_record("203.0.113.7", comment="managed by terraform")

        report = dry_run_in(world, Interface(node.address))

        assert steps(report, "dns-watch") == []
        [note] = [note for note in section(report, "dns-watch").notes if "in the way" in note]
        assert "203.0.113.7" in note
        assert "managed by terraform" in note
        assert OUR_COMMENT in note
        assert not report.problems

    def test_pod_that_a_later_pod_has_replaced_changes_nothing(self, world: World) -> None:
        old = world.headscale.add_node(NAME, user=USER)
        new = world.headscale.add_node(NAME, user=USER)
        world.add_record(new.address, comment=OUR_COMMENT, ttl=60)

        report = dry_run_in(world, Interface(old.address))

        assert steps(report, "dns-watch") == []
        assert any(f"node {new.id} of a later pod" in note for note in section(report, "dns-watch").notes)

    def test_name_with_a_record_of_another_owner_is_a_problem(self, world: World) -> None:
        world.headscale.add_node(NAME, user=USER, online=False)
        world.add_record("100.64.0.99", comment=COMMENT_OF_OTHER_OWNER)

        report = dry_run_in(world)

        assert steps(report, "cleanup") == []
        assert COMMENT_OF_OTHER_OWNER in section(report, "cleanup").problems[0]
        assert report.problems

    def test_unreadable_zone_is_a_problem(self, world: World) -> None:
        """The plan still contains changes of nodes, but no change of a record."""
        node = world.headscale.add_node(NAME, user=USER)
        world.add_record("100.64.0.99", comment=OUR_COMMENT)
        world.cloudflare.faults.add(faults.html(502), times=None)

        report = dry_run_in(world, Interface(node.address))

        assert report.problems
        assert report.context["zone"] == world.zone_id
        assert "record" not in {step.kind for step in section(report, "cleanup").steps}
        assert ("delete", "node") in steps(report, "cleanup")
        for command in ("cleanup", "dns-watch"):
            assert "Cloudflare" in section(report, command).problems[0]

    def test_unreadable_name_of_the_zone_is_not_a_problem(self, world: World) -> None:
        """A token that can edit records is not always allowed to read the zone."""
        node = world.headscale.add_node(NAME, user=USER)
        world.cloudflare.faults.add(refusal(403, INVALID_TOKEN), path=r"/zones/[0-9a-f]+$", times=None)

        report = dry_run_in(world, Interface(node.address))

        assert not report.problems
        assert steps(report, "dns-watch") == [("create", "record")]

    def test_unreachable_headscale_is_a_problem(self, world: World) -> None:
        world.add_record("100.64.0.99", comment=OUR_COMMENT)
        world.headscale.faults.add(faults.refuse(), times=None)

        report = dry_run_in(world)

        assert report.problems
        assert (report.context["headscale_version"], report.context["user"]) == (None, None)
        assert report.context["zone"] == "example.com"
        for command in ("cleanup", "dns-watch"):
            assert steps(report, command) == []
            assert "Headscale" in section(report, command).problems[0]
        assert "headscale version  could not be read" in text_of(report)
