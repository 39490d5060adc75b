"""`dns-watch` through Headscale's command line: every case of the HTTP transport in which Headscale has a say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.dns_watch import test_run as over_http
from tests.dns_watch.test_run import node, pods, watch
from tests.in_cluster import ClusterWorld, cluster_world

__all__ = ["node", "pods", "watch"]

RECORD: Final = "about the record, the interface or the note: the way to Headscale plays no part"
POLLS: Final = "counts looks as often as HTTP makes them; see test_exec.py for those over exec"
API_KEY: Final = "about an API key, or requests to a server; see tests/clients/test_exec.py"

NOT_HERE: Final = {
    "test_an_interface_without_a_vpn_address_is_no_answer": RECORD,
    "test_a_note_that_cannot_be_read_is_no_matter_where_the_interface_tells": RECORD,
    "test_a_note_that_cannot_be_read_is_said_once_where_it_is_needed": RECORD,
    "test_without_an_interface_looks_are_ever_further_apart_up_to_the_interval": POLLS,
    "test_looks_are_never_further_apart_than_the_interval": POLLS,
    "test_no_limit_is_none": POLLS,
    "test_a_record_that_is_right_is_not_written": RECORD,
    "test_our_duplicates_go_in_the_same_transaction": RECORD,
    "test_the_ttl_is_as_set": RECORD,
    "test_an_aaaa_record_is_kept_where_that_is_wanted": RECORD,
    "test_a_marked_aaaa_record_goes_where_it_is_not_wanted": RECORD,
    "test_only_an_address_that_the_pod_really_has_is_published": RECORD,
    "test_an_address_that_the_interface_does_not_show_yet_costs_no_record": RECORD,
    "test_an_address_outside_the_vpn_is_never_published": RECORD,
    "test_another_prefix_is_a_vpns_when_it_is_set": RECORD,
    "test_the_name_of_a_hostname_without_a_dot_gets_the_domain": RECORD,
    "test_without_an_interface_a_moved_address_is_followed_within_a_poll": POLLS,
    "test_what_somebody_did_to_the_record_is_undone_at_the_next_look": RECORD,
    "test_a_record_that_was_handed_over_is_left_alone": RECORD,
    "test_in_the_way_means_one_clear_error_and_no_write": RECORD,
    "test_other_records_are_no_matter": RECORD,
    "test_the_zones_own_name_servers_are_no_matter_at_its_apex": RECORD,
    "test_a_zone_that_is_not_the_names_gets_no_record": RECORD,
    "test_trouble_at_cloudflare_is_waited_out_with_ever_longer_pauses": RECORD,
    "test_trouble_at_cloudflare_makes_no_trouble_for_headscale": RECORD,
    "test_too_many_requests_are_honoured_for_as_long_as_told": RECORD,
    "test_too_many_requests_without_a_time_are_left_for_a_minute": RECORD,
    "test_a_whole_fleet_does_not_come_back_at_once": RECORD,
    "test_a_lost_answer_to_a_write_makes_no_second_record": RECORD,
    "test_a_record_that_is_known_to_be_wrong_is_not_called_right": RECORD,
    "test_a_record_that_was_right_is_called_right_while_cloudflare_is_down": RECORD,
    "test_a_moved_address_is_not_called_right_while_cloudflare_is_down": RECORD,
    "test_a_token_that_was_renewed_in_its_file_is_used": API_KEY,
    "test_a_token_file_that_cannot_be_read_any_more_ends_nothing": API_KEY,
    "test_an_upgrade_of_headscale_is_lived_with": API_KEY,
    "test_a_steady_hour_costs_one_small_look_a_poll_and_no_write": POLLS,
    "test_starting_anew_beside_a_right_record_costs_one_read_and_no_write": POLLS,
    "test_intervals_are_as_set": POLLS,
    "test_each_pass_is_one_line": POLLS,
    "test_two_records_made_in_the_same_second_become_one": RECORD,
    "test_a_pod_whose_node_is_gone_leaves_its_successors_record_alone": POLLS,
    "test_three_pods_leave_the_name_to_the_last": POLLS,
    "test_a_stop_ends_the_loop_in_the_middle_of_a_wait": POLLS,
}

CASES: Final = {name: case for name, case in vars(over_http).items() if name.startswith("test_")}

globals().update({name: case for name, case in CASES.items() if name not in NOT_HERE})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ClusterWorld]:
    with cluster_world(monkeypatch, tmp_path) as world:
        yield world


def test_nothing_is_left_out_that_is_not_there() -> None:
    assert NOT_HERE.keys() <= CASES.keys()
