"""A pod's life on real servers: each test is one thing that happens to a service."""

from __future__ import annotations

from tests.real.command import named
from tests.real.programs import eventually
from tests.real.service import MARK, OTHER_USER, USER, Service


def test_first_start(service: Service) -> None:
    """A key is written, a node comes in with it, its address becomes the record, and that is all."""
    service.cleanup()
    watch = service.watch()
    watch.said("pass.skipped")
    machine = service.machine()
    service.publishes(machine)
    assert watch.said("node.registered")["node_id"] == service.ids[0]
    written = len(service.cloudflare.writes)
    for _ in range(2):
        watch.next("pass.finished", changes=0, in_sync=True)
    assert len(service.cloudflare.writes) == written
    assert watch.stopped() == 0


def test_no_note(service: Service) -> None:
    """Without a note beside the key, as in a sidecar without the key volume, the only node online is ours."""
    machine = service.machine(key_file=service.write_key(service.server.create_key(USER)))
    service.watch()
    service.publishes(machine)


def test_container_restarts(service: Service) -> None:
    """With its state kept the node keeps its address, though it shows a used, expired key; nothing is written."""
    service.cleanup()
    machine = service.machine()
    watch = service.watch()
    service.publishes(machine)
    ids, address, written = service.ids, machine.address, len(service.cloudflare.writes)
    service.server.expire_key(service.key_file.read_text())
    machine.restart_logged_in()
    assert machine.login_error(service.key_file) is None
    assert (service.ids, machine.address) == (ids, address)
    watch.next("pass.finished", changes=0, in_sync=True)
    assert watch.stopped() == 0
    service.watch().said("pass.finished", changes=0, in_sync=True)
    assert len(service.cloudflare.writes) == written


def test_pod_is_replaced(service: Service) -> None:
    """Its state is lost: the old node goes, though it is online, and one node and one record are left in the end."""
    service.cleanup()
    machine = service.machine()
    watch = service.watch()
    service.publishes(machine)
    (old,) = service.ids
    watch.stopped()

    ended = service.cleanup()
    for event in ("node.online", "node.deleted"):
        assert [said["node_id"] for said in named(ended.events, event)] == [old]
    assert (service.ids, service.contents) == ([], [])

    machine.forget()
    machine.up(service.key_file)
    service.watch()
    service.publishes(machine)
    (new,) = service.ids
    assert int(new) > int(old)


def test_node_is_deleted(service: Service) -> None:
    """Somebody deletes the node of a pod that lives: its record stays, until a fresh key brings a new node."""
    service.cleanup()
    machine = service.machine()
    watch = service.watch()
    service.publishes(machine)
    (old,), written = service.ids, len(service.cloudflare.writes)
    service.server.delete_node(old)
    watch.said("pass.skipped")
    assert len(service.cloudflare.writes) == written

    # What a person does then: a fresh key, and a restart of the client's container.
    service.cleanup()
    machine.restart()
    machine.up(service.key_file)
    service.publishes(machine)
    (new,) = service.ids
    assert int(new) > int(old)
    assert watch.said("node.registered")["node_id"] == new


def test_two_pods_at_once(service: Service) -> None:
    """The later pod has the name; the earlier one stands down, and neither takes it back."""
    later_key = service.folder / "later"
    service.cleanup()
    service.cleanup(AUTHKEY_OUTPUT_PATH=str(later_key))
    earlier = service.machine()
    watch = service.watch()
    service.publishes(earlier)

    later = service.machine(key_file=later_key)
    later_watch = service.watch(AUTHKEY_OUTPUT_PATH=str(later_key))
    service.publishes(later)
    watch.said("node.superseded", successor_id=service.ids[1])
    later_watch.said("node.registered", node_id=service.ids[1])
    written = len(service.cloudflare.writes)
    for either in (watch, later_watch, watch):
        either.next("pass.finished", changes=0)
    assert (service.contents, len(service.cloudflare.writes)) == ([later.address], written)


def test_node_of_another_user(service: Service) -> None:
    """A node of our name that is another user's stays, with one warning, and is never published."""
    stranger = service.machine(key_file=service.write_key(service.server.create_key(OTHER_USER)))
    (foreign,) = service.ids
    (warned,) = named(service.cleanup().events, "node.foreign")
    assert (warned["node_id"], warned["user"]) == (foreign, OTHER_USER)
    watch = service.watch()
    watch.said("pass.skipped")
    machine = service.machine()
    service.publishes(machine)
    assert stranger.address != machine.address
    assert foreign in service.ids


def test_node_of_a_person(service: Service) -> None:
    """A node that came in without a key stays, though it is our user's."""
    person = service.new_machine()
    service.server.let_in(person, USER)
    (foreign,) = service.ids
    (warned,) = named(service.cleanup().events, "node.foreign")
    assert (warned["node_id"], warned["registered_by"]) == (foreign, "CLI")
    assert service.ids == [foreign]


def test_tagged_node(service: Service) -> None:
    """A node with our tags is ours: published, and deleted by the next pod."""
    tags = {"AUTHKEY_TAGS": "tag:web"}
    service.cleanup(**tags)
    machine = service.machine()
    service.watch(**tags)
    service.publishes(machine)
    (node,) = service.server.nodes(service.name)
    assert (node.get("tags") or node["forcedTags"]) == ["tag:web"]
    (deleted,) = named(service.cleanup(**tags).events, "node.deleted")
    assert deleted["node_id"] == node["id"]
    assert service.ids == []


def test_both_families(service: Service) -> None:
    """With DNS_IPV6 both of the node's addresses are published; records that somebody removes are made again."""
    service.cleanup()
    machine = service.machine()
    watch = service.watch(DNS_IPV6="true")
    service.publishes(machine, ipv6=True)
    for record in service.records:
        service.cloudflare.remove_record(record.id)
    eventually(lambda: len(watch.named("record.created")) == 4, "both records again", tell=watch.words)
    service.publishes(machine, ipv6=True)


def test_server_restarts(service: Service) -> None:
    """All nodes are offline and addresses are counted from the lowest again: ours stays what it is."""
    service.cleanup()
    machine = service.machine()
    watch = service.watch()
    service.publishes(machine)
    ids, written = service.ids, len(service.cloudflare.writes)
    service.server.stop()
    watch.said("pass.failed", service="Headscale")
    service.server.start()
    watch.next("pass.finished", changes=0, in_sync=True)
    eventually(lambda: service.server.nodes(service.name)[0]["online"], "the client to be back")
    watch.next("pass.finished", changes=0, in_sync=True)
    assert (service.ids, len(service.cloudflare.writes)) == (ids, written)


def test_wrong_api_key(service: Service) -> None:
    """A wrong key is an error that names its setting: `cleanup` ends with it, `dns-watch` goes on."""
    wrong = service.server.api_key[:-4] + "oooo"
    ended = service.run("cleanup", HEADSCALE_API_KEY=wrong)
    assert ended.exit_status == 1
    (failed,) = named(ended.events, "command.failed")
    assert (failed["error_type"], "HEADSCALE_API_KEY" in failed["error"]) == ("AuthError", True)
    assert not service.key_file.exists()
    assert wrong not in ended.out + ended.errors

    watch = service.watch(HEADSCALE_API_KEY=wrong)
    watch.said("pass.failed", error_type="AuthError", level="error", failures_in_a_row=2)
    assert watch.stopped() == 0
    assert wrong not in watch.words()


def test_unknown_user(service: Service) -> None:
    """A user that is not there is an error that lists those that are."""
    ended = service.run("cleanup", HEADSCALE_USER="nobody")
    assert ended.exit_status == 1
    (failed,) = named(ended.events, "command.failed")
    assert f"{OTHER_USER}, {USER}" in failed["error"]
    assert not service.key_file.exists()


def test_dry_run(service: Service) -> None:
    """It reads all and changes nothing: not in Headscale, not in the zone, not on disk."""
    service.cleanup()
    machine = service.machine()
    service.cloudflare.add_record(
        service.zone_id, type="A", name=service.name, content="100.64.200.1", comment=MARK, ttl=60
    )
    before = service.server.snapshot()
    key = service.key_file.read_bytes()
    ended = service.run("--dry-run", "--output", "json")
    assert (ended.exit_status, service.cloudflare.writes) == (0, [])
    assert (service.server.snapshot(), service.key_file.read_bytes()) == (before, key)
    assert f'"content": "{machine.address}"' in ended.out
    assert service.ids[0] in ended.out
