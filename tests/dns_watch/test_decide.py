"""Test what dns-watch decides in one or several passes. A pass is one iteration of the loop of dns-watch.

The tests call pure functions: `decide` returns the changes to make, and `conclude` returns the decision after they were
made. A "successor" is the node of a later pod of the workload. A pod is "superseded" and "stands down" (it does not
change the records) while a record has the address of a successor, or its own node is lost and has a successor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import pytest

from lifecycle.dns_watch.decide import conclude, decide, failure_event
from lifecycle.dns_watch.healing import (
    CONFIRMING_OBSERVATIONS,
    CONFIRMING_S,
    EMPTY_LIST_CONFIRMING_S,
    usable_key_id,
)
from lifecycle.dns_watch.schedule import records_are_due
from lifecycle.dns_watch.state import (
    NO_METADATA,
    ApiKeyRead,
    ApplyResult,
    Decision,
    HealState,
    KeyCheck,
    KnownNode,
    Loss,
    LossKind,
    Moment,
    Observation,
    RecordsRead,
    RecordState,
    State,
    Unregistered,
    WatchConfig,
)
from lifecycle.domain.changes import (
    CreateRecord,
    DeleteRecord,
    RecordChange,
    UpdateRecord,
    WriteFreshKey,
    WriteKeyMetadata,
    name_of,
)
from lifecycle.domain.errors import ApiError, AuthError, KeyFileError, TransientError, UserError
from lifecycle.domain.model import KeyMetadata, KeySpec, Node, PreAuthKey, Record, RecordSpec, User
from tests.builders import (
    ALIAS,
    APEX,
    COMMENT_AT_FURTHER_NAMES,
    COMMENT_OF_OTHER_OWNER,
    FURTHER_NAMES,
    NAME,
    NODE_OWNERSHIP,
    NOW,
    OUR_COMMENT,
    OUR_USER,
    RECORD_OWNERSHIP,
    SHARED_NAME,
    a_node,
    a_record,
    addresses,
)

V4 = "100.64.0.1"
INTERFACE = addresses(V4)
NODE = a_node(1, addresses=[V4])
KNOWN_NODE = KnownNode(NODE.id, NODE.machine_key)
METADATA = KeyMetadata("7", node_id="1", machine_key=NODE.machine_key)
SUCCESSOR = a_node(2, addresses=["100.64.0.2"])
OUTAGE = TransientError("Headscale did not respond", upstream="Headscale")
CLOUDFLARE_OUTAGE = TransientError("Cloudflare returned 502", upstream="Cloudflare", status=502)
RATE_LIMIT = TransientError("429", upstream="Cloudflare", status=429, retry_after=timedelta(seconds=700))
REFUSED = AuthError("the token was refused", upstream="Cloudflare", status=403)

POLL_INTERVAL_S = 30.0
VERIFY_INTERVAL_S = 300.0
RETRY_INTERVAL_S = 10.0


def key_spec(user: User) -> KeySpec:
    return KeySpec(user, timedelta(hours=1))


CONFIG = WatchConfig(
    main_name_ownership=RECORD_OWNERSHIP,
    hostname=NAME,
    user="svc",
    tags=frozenset(),
    ttl_s=60,
    ipv6=False,
    key_spec=key_spec,
    key_path="/tailscale-auth/authkey",
    self_heal=True,
    retry_interval=timedelta(seconds=RETRY_INTERVAL_S),
    max_retries=30,
    poll_interval=timedelta(seconds=POLL_INTERVAL_S),
    min_poll_interval=timedelta(),
    verify_interval=timedelta(seconds=VERIFY_INTERVAL_S),
    expects_interface=True,
)


def at(seconds: float, *, jitter: float = 0.0) -> Moment:
    """Return the time this many seconds after the start."""
    return Moment(NOW + timedelta(seconds=seconds), seconds, jitter)


def a_key(key_id: str = "7", *, used: bool = False, expires_in_s: float = 3600) -> PreAuthKey:
    """Return a key as Headscale lists it."""
    expires_at = NOW + timedelta(seconds=expires_in_s)
    return PreAuthKey(
        key_id, OUR_USER, frozenset(), reusable=False, ephemeral=False, used=used, created_at=NOW, expires_at=expires_at
    )


def registered(node: Node = NODE, *, records: Iterable[Record] | ApiError | None = ()) -> Observation:
    """Return an observation of a registered node.

    Args:
        records: the records that were read, or the error; None = they were not due.
    """
    read = records if records is None or isinstance(records, ApiError) else RecordsRead(tuple(records))
    return Observation(INTERFACE, node, NODE_OWNERSHIP, records=read)


def unregistered(
    kind: LossKind | None = LossKind.GONE,
    *,
    successor: Node | None = None,
    is_list_empty: bool = False,
    **fields: object,
) -> Observation:
    """Return an observation without a node.

    Args:
        kind: why the node is missing; None if this is uncertain.
        successor: the node of a later pod.
        is_list_empty: Headscale lists no nodes at all.
        fields: other fields of the observation.
    """
    node = None if kind in (LossKind.STRANDED, LossKind.NEVER_FOUND) else KNOWN_NODE
    loss = None if kind is None else Loss(kind, node, is_list_empty, successor)
    observation = Observation(INTERFACE, Unregistered("not found", loss), NODE_OWNERSHIP, METADATA)
    return replace(observation, **fields)  # type: ignore[arg-type]


# The state of a pod whose node is registered, before the records are read.
REGISTERED_STATE = State(node=KNOWN_NODE, is_registered=True, node_ownership=NODE_OWNERSHIP, interface=INTERFACE)
SPEC = RecordSpec(NAME, INTERFACE[0], 60, OUR_COMMENT)
# The state after the record was read and found to be correct.
IN_SYNC_STATE = replace(
    REGISTERED_STATE,
    records=RecordState(
        compared_specs=(SPEC,),
        verify_at_s=VERIFY_INTERVAL_S,
        reason="",
        addresses=INTERFACE,
    ),
)


def event_names(decision: Decision) -> list[str]:
    return [event.name for event in decision.events]


def decide_at(
    state: State, observation: Observation, seconds: float = 0.0, *, config: WatchConfig = CONFIG
) -> Decision:
    return decide(state, observation, config=config, now=at(seconds))


def conclude_at(
    decision: Decision, result: ApplyResult, seconds: float = 0.0, *, config: WatchConfig = CONFIG
) -> Decision:
    return conclude(decision, result, config=config, now=at(seconds))


def after(state: State, *steps: tuple[float, Observation], config: WatchConfig = CONFIG) -> Decision:
    """Return the last of several decisions. Each step is the time of a pass in seconds, and what it observes."""
    decision = Decision(state)
    for seconds, observation in steps:
        decision = decide_at(decision.state, observation, seconds, config=config)
    return decision


# --- The record -------------------------------------------------------------------------------------


def test_a_correct_record_is_in_sync_and_read_again_after_verify_interval() -> None:
    decision = decide_at(REGISTERED_STATE, registered(records=[a_record(content=V4)]))
    records = decision.state.records
    assert (records.in_sync, records.addresses, records.verify_at_s) == (True, INTERFACE, VERIFY_INTERVAL_S)


def test_a_record_is_out_of_sync_until_its_change_is_confirmed() -> None:
    observation = registered(records=[a_record(content="100.64.0.9")])
    decision = decide_at(IN_SYNC_STATE, observation)
    assert not decision.state.records.in_sync
    done = conclude_at(decision, None, 1)
    assert done.state.records.in_sync


def test_a_created_record_is_read_again_soon() -> None:
    """Another pod may have created a record at the same time."""
    observation = registered(records=[])
    done = conclude_at(decide_at(REGISTERED_STATE, observation), None)
    assert done.state.records.verify_at_s == POLL_INTERVAL_S


def test_a_failed_change_is_retried_with_backoff_and_not_reported_as_in_sync() -> None:
    observation = registered(records=[])
    state = REGISTERED_STATE
    waits = []
    for seconds in (0, 100, 200):
        decision = decide_at(state, observation, seconds)
        done = conclude_at(decision, CLOUDFLARE_OUTAGE, seconds)
        state = done.state
        waits.append(state.records.not_before_s - seconds)
        assert not state.records.in_sync
        assert state.records.compared_specs is None, "the records have to be compared again"
        assert [failure.error for failure in done.failures] == [CLOUDFLARE_OUTAGE]
    assert waits == [0.5, 1.0, 2.0]


def test_cloudflare_is_not_contacted_before_the_time_of_retry_after() -> None:
    decision = decide_at(REGISTERED_STATE, registered(records=RATE_LIMIT))
    assert decision.state.records.not_before_s == 700
    assert decision.wait_s == POLL_INTERVAL_S
    due = [records_are_due(decision.state, NODE, (SPEC,), at(seconds)) for seconds in (0, 699, 700)]
    assert due == [False, False, True]


@pytest.mark.parametrize("outage", [OUTAGE, CLOUDFLARE_OUTAGE], ids=["Headscale", "Cloudflare"])
def test_a_record_stays_in_sync_during_an_outage(outage: ApiError) -> None:
    """The failure is remembered, because it is the reason why the record was not read for a long time."""
    observation = registered(records=outage) if outage is CLOUDFLARE_OUTAGE else Observation(INTERFACE, outage)
    during = decide_at(IN_SYNC_STATE, observation, VERIFY_INTERVAL_S).state
    assert during.records.in_sync
    assert during.records.last_failure == str(outage)
    later = 2 * VERIFY_INTERVAL_S
    assert decide_at(during, registered(records=[a_record(content=V4)]), later).state.records.last_failure == ""


def test_an_outage_is_the_reason_of_a_record_that_is_out_of_sync() -> None:
    decision = decide_at(REGISTERED_STATE, registered(records=CLOUDFLARE_OUTAGE))
    assert decision.state.records.reason == str(CLOUDFLARE_OUTAGE)


@pytest.mark.parametrize(("error", "level"), [(CLOUDFLARE_OUTAGE, "warning"), (REFUSED, "error")])
def test_refused_credentials_are_an_error_and_an_outage_is_a_warning(error: ApiError, level: str) -> None:
    decision = decide_at(REGISTERED_STATE, registered(records=error))
    [event] = map(failure_event, decision.failures)
    assert (event.name, event.level, event.fields["upstream"]) == ("pass.failed", level, "Cloudflare")


def test_a_changed_address_makes_the_record_out_of_sync_before_it_is_read() -> None:
    moved = replace(NODE, addresses=addresses("100.64.0.8"))
    observation = replace(registered(moved, records=None), interface=addresses("100.64.0.8"))
    during_backoff = replace(IN_SYNC_STATE, records=replace(IN_SYNC_STATE.records, not_before_s=1000.0))
    assert not decide_at(during_backoff, observation, 10).state.records.in_sync


def test_an_address_outside_the_vpn_prefixes_is_never_published() -> None:
    outside = replace(NODE, addresses=addresses("203.0.113.9"))
    decision = decide_at(IN_SYNC_STATE, registered(outside, records=None))
    assert decision.changes == ()
    assert "address.unpublishable" in event_names(decision)
    assert "VPN_PREFIXES" in decision.state.records.reason


@pytest.mark.parametrize("on_interface", [["100.64.0.2"], ["fd7a:115c:a1e0::1"], []])
def test_an_address_that_the_interface_lacks_is_not_published(on_interface: list[str]) -> None:
    """The advice to set DNS_IPV6 would be wrong: the interface may not have its IPv4 address yet."""
    node = replace(NODE, addresses=addresses("100.64.0.1", "fd7a:115c:a1e0::1"))
    observation = replace(registered(node, records=[]), interface=addresses(*on_interface))
    decision = decide_at(REGISTERED_STATE, observation)
    assert decision.changes == ()
    assert "DNS_IPV6" not in decision.state.records.reason
    assert "can be published" in decision.state.records.reason


def test_a_node_without_an_ipv4_address_needs_dns_ipv6() -> None:
    node = replace(NODE, addresses=addresses("fd7a:115c:a1e0::1"))
    observation = replace(registered(node, records=[]), interface=node.addresses)
    decision = decide_at(REGISTERED_STATE, observation)
    assert decision.changes == ()
    assert "DNS_IPV6=true" in decision.state.records.reason


def test_the_records_are_compared_again_for_a_different_node() -> None:
    other = a_node(2, addresses=[V4])
    due = [records_are_due(IN_SYNC_STATE, node, (SPEC,), at(0)) for node in (NODE, other)]
    assert due == [False, True]
    decision = decide_at(IN_SYNC_STATE, registered(other, records=None))
    assert decision.state.records.compared_specs is None
    assert decision.state.node == KnownNode("2", other.machine_key)
    assert "node.registered" in event_names(decision)


# --- Further names: those in DNS_ALIASES and DNS_SHARED_NAMES ----------------------------------------

CONFIG_WITH_FURTHER_NAMES = replace(CONFIG, further_name_ownerships=FURTHER_NAMES)
ALIAS_RECORD = a_record("alias", name=ALIAS, type_="CNAME", content=NAME, comment=COMMENT_AT_FURTHER_NAMES)
EVERY_RECORD = (
    a_record(content=V4),
    ALIAS_RECORD,
    a_record("apex", name=APEX, comment=COMMENT_AT_FURTHER_NAMES),
    a_record("shared", name=SHARED_NAME, comment=COMMENT_AT_FURTHER_NAMES),
)
RECORD_OF_ANOTHER_WORKLOAD = a_record(
    "wiki", name=SHARED_NAME, content="100.64.0.5", comment=f"{OUR_COMMENT} wiki.example.com"
)


def changed_names(*records: Record) -> list[tuple[type, str]]:
    """Return the type and the name of each change, if these records exist."""
    decision = decide_at(REGISTERED_STATE, registered(records=records), config=CONFIG_WITH_FURTHER_NAMES)
    return [(type(change), name_of(change)) for change in decision.changes if isinstance(change, RecordChange)]


def test_missing_records_are_created_at_every_name() -> None:
    assert changed_names() == [(CreateRecord, name) for name in (NAME, ALIAS, APEX, SHARED_NAME)]
    assert changed_names(*EVERY_RECORD, RECORD_OF_ANOTHER_WORKLOAD) == []
    assert decide_at(
        REGISTERED_STATE,
        registered(records=[*EVERY_RECORD, RECORD_OF_ANOTHER_WORKLOAD]),
        config=CONFIG_WITH_FURTHER_NAMES,
    ).state.records.in_sync


@pytest.mark.parametrize(
    "foreign",
    [
        pytest.param(a_record("foreign", name=ALIAS, type_="TXT", content="x", comment=""), id="TXT at an alias"),
        pytest.param(
            a_record("foreign", name=ALIAS, comment=f"{OUR_COMMENT} wiki.example.com"),
            id="another workload at an alias",
        ),
        pytest.param(
            a_record("foreign", name=APEX, comment=f"{OUR_COMMENT} wiki.example.com"),
            id="another workload at the domain",
        ),
        pytest.param(a_record("foreign", name=SHARED_NAME, comment=""), id="no comment at a shared name"),
        pytest.param(
            a_record("foreign", name=SHARED_NAME, comment=OUR_COMMENT), id="workload whose main name is the shared name"
        ),
    ],
)
def test_a_foreign_record_concerns_only_its_own_name(foreign: Record) -> None:
    observation = registered(records=[foreign])
    decision = decide_at(REGISTERED_STATE, observation, config=CONFIG_WITH_FURTHER_NAMES)
    assert [name_of(change) for change in decision.changes if isinstance(change, RecordChange)] == [
        name for name in (NAME, ALIAS, APEX, SHARED_NAME) if name != foreign.name
    ]
    [event] = [event for event in decision.events if event.name == "record.foreign"]
    assert event.fields["record"] == foreign.name
    records = conclude_at(decision, None, 1, config=CONFIG_WITH_FURTHER_NAMES).state.records
    assert (records.in_sync, records.addresses) == (False, INTERFACE)
    assert foreign.name in records.reason


def test_no_alias_points_to_a_foreign_record() -> None:
    """If the record at the main name is foreign, no CNAME record points to that name."""
    foreign = a_record(content="203.0.113.7", comment="")
    observation = registered(records=[foreign])
    assert changed_names(foreign) == [(CreateRecord, APEX), (CreateRecord, SHARED_NAME)]
    decision = decide_at(REGISTERED_STATE, observation, config=CONFIG_WITH_FURTHER_NAMES)
    records = conclude_at(decision, None, 1, config=CONFIG_WITH_FURTHER_NAMES).state.records
    assert (records.in_sync, records.addresses) == (False, ())


def test_only_the_workloads_own_records_at_removed_names_are_deleted() -> None:
    own = replace(ALIAS_RECORD, id="own", name="old.example.com")
    foreign = [
        replace(own, id=str(number), comment=comment)
        for number, comment in enumerate(
            (
                OUR_COMMENT,  # the comment at the main name of a workload
                f"{OUR_COMMENT} wiki.example.com",  # another workload
                f"{COMMENT_AT_FURTHER_NAMES}.org",
                COMMENT_OF_OTHER_OWNER,
                "",
            )
        )
    ]
    txt_record = replace(own, id="txt", type="TXT")
    assert changed_names(*EVERY_RECORD, own, *foreign, txt_record) == [(DeleteRecord, "old.example.com")]


def test_a_pod_stands_down_for_a_later_pod_that_has_a_further_name() -> None:
    taken = a_record("shared", name=SHARED_NAME, content="100.64.0.2", comment=COMMENT_AT_FURTHER_NAMES)
    records = RecordsRead((taken,), preferred_nodes=(SUCCESSOR,))
    decision = decide_at(REGISTERED_STATE, replace(registered(), records=records), config=CONFIG_WITH_FURTHER_NAMES)
    assert (decision.changes, decision.state.superseded_by) == ((), "2")


# --- Standing down ----------------------------------------------------------------------------------


def test_standing_down_is_reported_once_and_ends() -> None:
    records = RecordsRead((a_record(content="100.64.0.2"),), preferred_nodes=(SUCCESSOR,))
    superseded = replace(registered(), records=records)
    decision = after(REGISTERED_STATE, (0, superseded))
    assert (decision.changes, decision.state.superseded_by, decision.state.records.in_sync) == ((), "2", False)
    assert event_names(decision) == ["node.superseded"]
    decision = after(decision.state, (VERIFY_INTERVAL_S, superseded))
    assert decision.events == ()
    decision = after(decision.state, (2 * VERIFY_INTERVAL_S, registered(records=[a_record(content="100.64.0.2")])))
    assert event_names(decision) == ["node.reinstated"]
    assert [type(change) for change in decision.changes] == [UpdateRecord]


def test_a_pod_that_lost_its_node_stands_down_for_a_later_pod_and_creates_no_key() -> None:
    key_check = KeyCheck(METADATA, a_key(used=True), is_in_file=True)
    steps = [(seconds, unregistered(successor=SUCCESSOR, key_check=key_check)) for seconds in (0, 40, 80, 120)]
    decision = after(IN_SYNC_STATE, *steps)
    assert decision.changes == ()
    assert decision.state.superseded_by == "2"
    assert usable_key_id(decision.state, at(120)) is None


# --- Lookups: attempts to find this pod's node ------------------------------------------------------


def waits_of(state: State, observations: Sequence[Observation], *, config: WatchConfig = CONFIG) -> list[float]:
    """Return the wait after each of several consecutive observations."""
    waits = []
    seconds = 0.0
    for observation in observations:
        decision = decide_at(state, observation, seconds, config=config)
        state = decision.state
        waits.append(decision.wait_s)
        seconds += decision.wait_s
    return waits


def test_lookups_slow_down_to_the_retry_interval() -> None:
    # With the jitter 0, the wait for a lookup is 80 % of its interval, which is 1, 1, 2, 2, 4, 4, 8, 8, 10 and 10 s.
    waits = waits_of(State(interface=INTERFACE), [unregistered(LossKind.NEVER_FOUND)] * 10)
    assert waits == pytest.approx([0.8, 0.8, 1.6, 1.6, 3.2, 3.2, 6.4, 6.4, 8.0, 8.0])


def test_lookups_are_frequent_again_after_the_interface_has_changed() -> None:
    slow = after(State(), *[(seconds, unregistered(LossKind.NEVER_FOUND)) for seconds in range(20)])
    assert slow.wait_s == pytest.approx(8.0)
    changed = replace(unregistered(LossKind.NEVER_FOUND), interface=addresses("100.64.0.5"))
    assert after(slow.state, (30, changed)).wait_s == pytest.approx(0.8)


def test_failed_lookups_back_off_and_do_not_count_as_lookups() -> None:
    failed = Observation(INTERFACE, OUTAGE)
    assert waits_of(State(), [failed] * 8) == [0.5, 1, 2, 4, 8, 16, 30, 30]
    decision = after(State(), (0, unregistered(LossKind.NEVER_FOUND)), (1, failed), (2, failed))
    assert (decision.state.lookups, decision.state.failures) == (1, 2)


def test_the_command_gives_up_after_max_retries() -> None:
    config = replace(CONFIG, max_retries=3)
    steps = [(seconds, unregistered(LossKind.NEVER_FOUND)) for seconds in range(3)]
    assert after(State(), *steps[:2], config=config).give_up is None
    reason = after(State(), *steps, config=config).give_up
    assert reason is not None
    assert NAME in reason


@pytest.mark.parametrize(
    ("state", "observation"),
    [
        pytest.param(REGISTERED_STATE, unregistered(None), id="registered before"),
        pytest.param(State(), unregistered(LossKind.GONE), id="gone before this process started"),
        pytest.param(State(), unregistered(LossKind.EXPIRED), id="expired before this process started"),
    ],
)
def test_max_retries_does_not_apply_to_a_node_that_was_registered(state: State, observation: Observation) -> None:
    steps = [(seconds, observation) for seconds in range(100)]
    assert after(state, *steps, config=replace(CONFIG, max_retries=1)).give_up is None


def test_the_minimum_interval_applies_after_the_first_registration() -> None:
    config = replace(CONFIG, min_poll_interval=timedelta(seconds=60))
    assert after(REGISTERED_STATE, (0, unregistered(None)), config=config).wait_s == 60
    assert after(State(), (0, unregistered(None)), config=config).wait_s < 1


def test_an_identification_problem_is_reported_once() -> None:
    problem = replace(unregistered(None), node=Unregistered("no user", error=UserError("no user")), node_ownership=None)
    decision = after(State(), (0, problem))
    assert event_names(decision)[0] == "node.identification_failed"
    assert "node.identification_failed" not in event_names(after(decision.state, (1, problem)))


def test_an_assumed_user_is_reported_once() -> None:
    """If HEADSCALE_USER is not set, the only user is assumed to be the owner of the node."""
    config = replace(CONFIG, user=None)
    decision = after(State(), (0, registered(records=None)), config=config)
    assert event_names(decision)[0] == "user.assumed"
    assert "user.assumed" not in event_names(after(decision.state, (1, registered(records=None)), config=config))


# --- Key metadata: the file that describes the pre-auth key and its node ----------------------------


@pytest.mark.parametrize(
    ("metadata", "change_count"),
    [
        pytest.param(KeyMetadata("7"), 1, id="metadata without a node"),
        pytest.param(METADATA, 0, id="metadata with this node"),
        pytest.param(replace(METADATA, machine_key="mkey:other"), 1, id="metadata with another machine key"),
        pytest.param(NO_METADATA, 0, id="no metadata"),
    ],
)
def test_a_node_that_registers_is_stored_in_the_metadata(metadata: KeyMetadata, change_count: int) -> None:
    observation = replace(registered(records=None), metadata=metadata)
    changes = decide_at(REGISTERED_STATE, observation).changes
    assert len(changes) == change_count
    for change in changes:
        assert isinstance(change, WriteKeyMetadata)
        assert change.metadata == METADATA


# --- A lost node: it was deleted or has expired -----------------------------------------------------

USED_KEY = KeyCheck(METADATA, a_key(used=True), is_in_file=True)
USABLE_KEY = KeyCheck(METADATA, a_key(), is_in_file=True)


def test_a_loss_is_confirmed_by_three_observations_over_a_minute() -> None:
    assert (CONFIRMING_OBSERVATIONS, CONFIRMING_S) == (3, 60)
    assert after(IN_SYNC_STATE, (0, unregistered()), (30, unregistered()), (59, unregistered())).state.heal.lost is None
    assert after(IN_SYNC_STATE, (0, unregistered()), (61, unregistered())).state.heal.lost is None
    decision = after(IN_SYNC_STATE, (0, unregistered()), (30, unregistered()), (60, unregistered()))
    assert decision.state.heal.lost is LossKind.GONE
    assert event_names(decision) == ["node.lost", "pass.skipped"]


# The node is gone, and Headscale's list of nodes is empty.
EMPTY_LIST = unregistered(is_list_empty=True)


def test_a_loss_with_an_empty_list_is_confirmed_by_three_observations_over_five_minutes() -> None:
    assert EMPTY_LIST_CONFIRMING_S == 300
    assert after(IN_SYNC_STATE, *[(seconds, EMPTY_LIST) for seconds in range(300)]).state.heal.lost is None
    assert after(IN_SYNC_STATE, (0, EMPTY_LIST), (301, EMPTY_LIST)).state.heal.lost is None
    decision = after(
        IN_SYNC_STATE, (0, EMPTY_LIST), (150, EMPTY_LIST), (300, unregistered(is_list_empty=True, key_check=USED_KEY))
    )
    assert decision.state.heal.lost is LossKind.GONE
    assert event_names(decision) == ["node.lost", "pass.skipped"]
    assert [type(change) for change in decision.changes] == [WriteFreshKey]


@pytest.mark.parametrize(
    ("first", "second", "not_confirmed_at_s", "confirmed_at_s"),
    [
        pytest.param(unregistered(), EMPTY_LIST, 329, 330, id="list becomes empty"),
        pytest.param(EMPTY_LIST, unregistered(), 89, 90, id="list becomes non-empty"),
    ],
)
def test_an_empty_list_and_a_list_of_other_nodes_are_counted_separately(
    first: Observation, second: Observation, not_confirmed_at_s: float, confirmed_at_s: float
) -> None:
    steps = [(0, first), (29, first), (30, second), (59, second)]
    assert after(IN_SYNC_STATE, *steps, (not_confirmed_at_s, second)).state.heal.lost is None
    assert after(IN_SYNC_STATE, *steps, (confirmed_at_s, second)).state.heal.lost is LossKind.GONE


@pytest.mark.parametrize(
    "interruption",
    [
        pytest.param(Observation(INTERFACE, OUTAGE), id="outage"),
        pytest.param(unregistered(None), id="uncertain observation"),
        pytest.param(unregistered(LossKind.EXPIRED), id="another kind of loss"),
        pytest.param(EMPTY_LIST, id="empty list"),
        pytest.param(registered(records=None), id="registered node"),
    ],
)
def test_an_interruption_restarts_the_confirmation(interruption: Observation) -> None:
    steps = [(0, unregistered()), (30, unregistered()), (45, interruption), (61, unregistered()), (90, unregistered())]
    assert after(IN_SYNC_STATE, *steps).state.heal.lost is None


def confirmed_loss(
    key_check: KeyCheck | ApiError | KeyFileError | None,
    kind: LossKind = LossKind.GONE,
    *,
    config: WatchConfig = CONFIG,
) -> Decision:
    """Return the decision after the third observation of a loss, which includes this check of the key file."""
    return after(
        IN_SYNC_STATE,
        (0, unregistered(kind)),
        (30, unregistered(kind)),
        (60, unregistered(kind, key_check=key_check)),
        config=config,
    )


@pytest.mark.parametrize(
    ("key_check", "creates_key"),
    [
        pytest.param(USED_KEY, True, id="used key"),
        pytest.param(KeyCheck(METADATA, a_key(expires_in_s=-1), is_in_file=True), True, id="expired key"),
        pytest.param(KeyCheck(METADATA, None, is_in_file=True), True, id="deleted key"),
        pytest.param(KeyCheck(METADATA, a_key(), is_in_file=False), True, id="usable key that is not in the file"),
        pytest.param(USABLE_KEY, False, id="usable key"),
        pytest.param(KeyFileError("malformed"), False, id="malformed metadata"),
        pytest.param(OUTAGE, False, id="keys not readable"),
        pytest.param(None, False, id="keys not read"),
    ],
)
def test_a_new_key_is_created_only_if_the_file_has_no_usable_one(
    key_check: KeyCheck | ApiError | KeyFileError | None, creates_key: bool
) -> None:
    changes = confirmed_loss(key_check).changes
    assert [type(change) for change in changes] == ([WriteFreshKey] if creates_key else [])


@pytest.mark.parametrize("key_check", [USED_KEY, OUTAGE, KeyFileError("malformed"), None])
def test_a_loss_is_reported_whether_or_not_the_keys_can_be_read(
    key_check: KeyCheck | ApiError | KeyFileError | None,
) -> None:
    assert "node.lost" in event_names(confirmed_loss(key_check))


def test_without_self_heal_a_loss_is_reported_and_nothing_is_created() -> None:
    decision = confirmed_loss(USED_KEY, config=replace(CONFIG, self_heal=False))
    assert decision.changes == ()
    [lost] = [event for event in decision.events if event.name == "node.lost"]
    assert "SELF_HEAL=true" in lost.fields["advice"]


@pytest.mark.parametrize(("kind", "heals"), [(LossKind.GONE, True), (LossKind.STRANDED, False)])
def test_the_advice_on_a_loss_says_whether_the_pod_heals_itself(kind: LossKind, heals: bool) -> None:
    [lost] = [event for event in confirmed_loss(USED_KEY, kind).events if event.name == "node.lost"]
    assert ("SELF_HEAL restarts tailscale" in lost.fields["advice"]) == heals


def test_a_usable_key_that_is_not_in_the_file_is_replaced() -> None:
    [change] = confirmed_loss(KeyCheck(METADATA, a_key(), is_in_file=False)).changes
    assert isinstance(change, WriteFreshKey)
    assert change.replaces == a_key()
    assert (change.node_id, change.machine_key) == ("1", NODE.machine_key)


def test_the_metadata_of_a_new_key_names_the_lost_node() -> None:
    """The metadata of the last key can still name another node, because the lost node was found by its address."""
    metadata = replace(METADATA, node_id="2", machine_key="mkey:other")
    [change] = confirmed_loss(KeyCheck(metadata, a_key(used=True)), LossKind.EXPIRED).changes
    assert isinstance(change, WriteFreshKey)
    assert (change.node_id, change.machine_key) == (NODE.id, NODE.machine_key)


def test_a_stranded_pod_gets_a_new_key_only_if_headscale_lists_its_last_key() -> None:
    """A stranded pod has a VPN address that no node has. If its key is unknown, its node may be on another server."""
    assert len(confirmed_loss(USED_KEY, LossKind.STRANDED).changes) == 1
    not_listed = KeyCheck(METADATA, None)
    assert confirmed_loss(not_listed, LossKind.STRANDED).changes == ()


def state_with_usable_key() -> State:
    """Return the state after a confirmed loss, with a new key that was written at 60 s."""
    return conclude_at(confirmed_loss(USED_KEY), a_key("8"), 60).state


def test_a_restart_helps_after_a_new_key_was_written() -> None:
    """After a restart, the tailscale container registers a node with the key."""
    assert usable_key_id(confirmed_loss(USED_KEY).state, at(60)) is None
    assert usable_key_id(state_with_usable_key(), at(61)) == "8"
    unused = unregistered(key_check=KeyCheck(METADATA, a_key("8"), is_in_file=True))
    assert usable_key_id(after(state_with_usable_key(), (70, unused)).state, at(70)) == "8"


@pytest.mark.parametrize(
    "heal",
    [
        pytest.param({"observed": None}, id="last lookup did not observe a loss"),
        pytest.param({"key": None}, id="no key"),
        pytest.param({"key": a_key("8", used=True)}, id="used key"),
        pytest.param({"key": a_key("8", expires_in_s=10)}, id="expired key"),
        pytest.param({"lost": LossKind.STRANDED}, id="stranded"),
    ],
)
def test_a_restart_does_not_help(heal: dict[str, object]) -> None:
    state = state_with_usable_key()
    state = replace(state, heal=replace(state.heal, **heal))  # type: ignore[arg-type]
    assert usable_key_id(state, at(61)) is None


def test_a_restart_does_not_help_a_superseded_pod() -> None:
    assert usable_key_id(replace(state_with_usable_key(), superseded_by="9"), at(61)) is None


def test_a_restart_does_not_help_while_the_interface_is_changing() -> None:
    state = replace(state_with_usable_key(), interface_changed_s=50.0)
    assert usable_key_id(state, at(50 + CONFIRMING_S - 1)) is None
    assert usable_key_id(state, at(50 + CONFIRMING_S)) == "8"


def test_the_interval_between_new_keys_grows_up_to_an_hour() -> None:
    state = state_with_usable_key()
    created = []
    pass_interval_s = 10
    for seconds in range(70, 4 * 3600, pass_interval_s):
        observation = unregistered(key_check=USED_KEY)
        decision = decide_at(state, observation, seconds)
        state = decision.state
        if decision.changes:
            created.append(seconds)
            state = conclude_at(decision, a_key("9"), seconds).state
    pauses = [later - earlier for earlier, later in pairwise(created)]
    assert created
    assert pauses == sorted(pauses)
    assert max(pauses) <= 3600 + pass_interval_s


def test_a_node_that_returns_ends_the_loss() -> None:
    decision = after(state_with_usable_key(), (70, registered(records=[a_record(content=V4)])))
    assert decision.state.heal == HealState()
    assert "node.returned" in event_names(decision)


def test_a_failed_key_creation_is_counted_as_a_failure_of_headscale() -> None:
    decision = confirmed_loss(USED_KEY)
    state = decision.state
    done = conclude_at(decision, OUTAGE, 60)
    assert [failure.error for failure in done.failures] == [OUTAGE]
    assert done.state.failures == state.failures + 1
    assert done.state.heal.observed is None


def test_an_unwritable_key_file_is_not_counted_as_a_failure_of_headscale() -> None:
    done = conclude_at(confirmed_loss(USED_KEY), KeyFileError("read-only"), 60)
    assert event_names(done) == ["key_file.unwritable"]
    assert done.failures == ()


def test_missing_key_metadata_is_reported_once() -> None:
    """The event `key_file.unwritable` also reports that the metadata cannot be read."""
    decision = after(
        IN_SYNC_STATE,
        (0, unregistered()),
        (30, unregistered()),
        (60, unregistered(key_check=KeyCheck(NO_METADATA))),
    )
    assert "key_file.unwritable" in event_names(decision)
    again = after(decision.state, (200, unregistered(key_check=KeyCheck(NO_METADATA))))
    assert "key_file.unwritable" not in event_names(again)


# --- Expiry -----------------------------------------------------------------------------------------


def test_an_api_key_that_expires_soon_is_reported_once_a_day() -> None:
    expiring = replace(registered(records=None), api_key=ApiKeyRead(NOW + timedelta(days=3)))
    decision = after(REGISTERED_STATE, (0, expiring))
    assert "api_key.expiring" in event_names(decision)
    # The next read shows within an hour whether an operator has replaced the API key.
    assert decision.state.api_key_read_due_s == 3600
    assert "api_key.expiring" not in event_names(after(decision.state, (86_000, registered(records=None))))
    assert "api_key.expiring" in event_names(after(decision.state, (86_400, registered(records=None))))


def test_an_api_key_that_stays_valid_is_read_once_a_day() -> None:
    valid = replace(registered(records=None), api_key=ApiKeyRead(NOW + timedelta(days=60)))
    decision = after(REGISTERED_STATE, (0, valid))
    assert decision.state.api_key_read_due_s == 86_400
    assert decision.events == ()


def test_the_known_expiry_is_kept_if_the_api_keys_cannot_be_listed() -> None:
    state = replace(REGISTERED_STATE, api_key_expires_at=NOW + timedelta(days=60))
    decision = after(state, (0, replace(registered(records=None), api_key=OUTAGE)))
    assert decision.state.api_key_expires_at == NOW + timedelta(days=60)
    assert decision.state.api_key_read_due_s == 3600


def test_an_expired_node_stays_known_but_is_not_registered() -> None:
    """The state keeps the node, so that dns-watch recognises the node when it registers again."""
    decision = after(IN_SYNC_STATE, (0, unregistered(LossKind.EXPIRED)))
    assert decision.state.node == KNOWN_NODE
    assert not decision.state.is_registered


# --- The poll interval --------------------------------------------------------------------------------------

NEVER_S = 1e9
# The state after many polls without a change. The fleet (the nodes of all pods) has 1,000 nodes.
UNCHANGED_STATE = replace(
    IN_SYNC_STATE,
    fleet_size=1000,
    idle_polls=10,
    fleet_count_due_s=NEVER_S,
    records=replace(IN_SYNC_STATE.records, verify_at_s=NEVER_S),
)
OVERLOAD = TransientError("Headscale returned 503", upstream="Headscale", status=503)


@pytest.mark.parametrize(
    ("fleet_size", "node_read_s", "configured_s", "expected_s"),
    [
        pytest.param(1, 0.06, 30, 30, id="one pod"),
        pytest.param(100, 0.06, 30, 30, id="small fleet"),
        pytest.param(400, 0.06, 30, 120, id="large fleet"),
        pytest.param(1000, 0.06, 30, 300, id="thousand pods"),
        pytest.param(9000, 0.06, 30, 300, id="more than a thousand pods"),
        pytest.param(1, 2.0, 30, 120, id="slow Headscale"),
        pytest.param(1, 60.0, 30, 300, id="very slow Headscale"),
        pytest.param(400, 1.0, 30, 120, id="large fleet and slow Headscale"),
        pytest.param(1, 0.06, 5, 5, id="short POLL_INTERVAL"),
        pytest.param(400, 0.06, 200, 200, id="POLL_INTERVAL longer than needed"),
        pytest.param(1000, 0.06, 900, 900, id="POLL_INTERVAL longer than 300 s"),
    ],
)
def test_the_poll_interval_depends_on_the_load(
    fleet_size: int, node_read_s: float, configured_s: float, expected_s: float
) -> None:
    """It is the longest of 0.3 s per node and 60 times the response time, each up to 300 s, and POLL_INTERVAL."""
    config = replace(CONFIG, poll_interval=timedelta(seconds=configured_s))
    state = replace(UNCHANGED_STATE, fleet_size=fleet_size, node_read_s=node_read_s)
    observation = replace(registered(records=None), node_read_s=node_read_s)
    assert decide_at(state, observation, config=config).wait_s == pytest.approx(expected_s)


def test_a_pod_without_an_interface_polls_at_the_configured_interval() -> None:
    state = replace(UNCHANGED_STATE, interface=None)
    observation = replace(registered(records=None), interface=None)
    assert decide_at(state, observation).wait_s == pytest.approx(30)


@pytest.mark.parametrize(
    ("state", "observation"),
    [
        pytest.param(replace(UNCHANGED_STATE, node=None), registered(records=None), id="node registered"),
        pytest.param(replace(UNCHANGED_STATE, node=KnownNode("9", "other")), registered(records=None), id="other node"),
        pytest.param(replace(UNCHANGED_STATE, interface=None), registered(records=None), id="interface changed"),
        pytest.param(UNCHANGED_STATE, registered(records=[a_record(content="100.64.0.9")]), id="record differs"),
        pytest.param(
            UNCHANGED_STATE,
            registered(records=[a_record(content=V4, comment=COMMENT_OF_OTHER_OWNER)]),
            id="foreign record",
        ),
        pytest.param(replace(UNCHANGED_STATE, superseded_by="2"), registered(records=None), id="superseded"),
        pytest.param(
            decide_at(UNCHANGED_STATE, unregistered()).state, registered(records=None), id="unregistered before"
        ),
        pytest.param(
            decide_at(UNCHANGED_STATE, Observation(INTERFACE, OUTAGE)).state,
            registered(records=None),
            id="outage before",
        ),
    ],
)
def test_anything_unusual_makes_polls_frequent_again(state: State, observation: Observation) -> None:
    decision = decide_at(state, observation)
    assert decision.wait_s == POLL_INTERVAL_S
    waits_s = []
    for _ in range(5):
        decision = decide_at(decision.state, registered(records=None))
        waits_s.append(decision.wait_s)
    assert waits_s[-1] == pytest.approx(POLL_INTERVAL_S if decision.state.superseded_by else 300, abs=0.01)
    assert sorted(waits_s) == waits_s


def test_an_overloaded_headscale_is_not_polled_more_often() -> None:
    failed = decide_at(UNCHANGED_STATE, Observation(INTERFACE, OVERLOAD))
    assert decide_at(failed.state, registered(records=None)).wait_s == 300


@pytest.mark.parametrize(("fleet_size", "longest_s"), [(1, POLL_INTERVAL_S), (1000, 300.0)])
def test_the_backoff_of_a_large_fleet_is_longer(fleet_size: int, longest_s: float) -> None:
    failed = decide_at(replace(UNCHANGED_STATE, fleet_size=fleet_size, failures=50), Observation(INTERFACE, OUTAGE))
    assert failed.wait_s == longest_s


@pytest.mark.parametrize(
    ("verify_in_s", "expected_s"),
    [
        pytest.param(100, 100, id="records due before the poll"),
        pytest.param(310, 310, id="records due soon after the poll"),
        pytest.param(380, 300, id="records due later"),
    ],
)
def test_a_pass_is_scheduled_when_the_records_are_due(verify_in_s: float, expected_s: float) -> None:
    """The poll interval is 300 s. A poll waits for records that are due soon after it."""
    state = replace(UNCHANGED_STATE, records=replace(UNCHANGED_STATE.records, verify_at_s=verify_in_s))
    assert decide_at(state, registered(records=None)).wait_s == pytest.approx(expected_s, abs=0.01)


def test_a_pass_is_scheduled_when_the_node_expires() -> None:
    node = replace(NODE, expires_at=NOW + timedelta(seconds=40))
    state = replace(UNCHANGED_STATE, node_warning_due_s=NEVER_S)  # no new warning, which would make polls frequent
    assert decide_at(state, registered(node, records=None)).wait_s == pytest.approx(40, abs=0.01)


def test_a_response_time_has_a_weight_of_a_quarter_in_the_average() -> None:
    slow = decide_at(UNCHANGED_STATE, replace(registered(records=None), node_read_s=2.0))
    assert slow.state.node_read_s == pytest.approx(0.5)


def test_the_fleet_is_counted_again_within_two_hours_and_then_daily() -> None:
    first = decide(State(), replace(registered(), fleet_size=1), config=CONFIG, now=at(0, jitter=1.0)).state
    assert 0 < first.fleet_count_due_s <= 2 * 3600
    second = decide_at(first, replace(registered(), fleet_size=1000), first.fleet_count_due_s).state
    assert (second.fleet_size, second.fleet_count_due_s - first.fleet_count_due_s) == (1000, 86_400)
    unread = decide_at(first, Observation(INTERFACE, OUTAGE), first.fleet_count_due_s).state
    assert (unread.fleet_size, unread.fleet_count_due_s) == (1, second.fleet_count_due_s)
