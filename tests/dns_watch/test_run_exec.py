"""`dns-watch` through Headscale's command line: the cases of the HTTP transport in which Headscale has a say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dns_watch import test_run as over_http
from tests.dns_watch.test_run import node, pods, watch
from tests.in_cluster import ClusterWorld, cluster_world

__all__ = ["node", "pods", "watch"]

CASES = (
    "test_the_node_with_the_interfaces_address_is_published",
    "test_without_an_interface_the_node_of_our_key_is_published",
    "test_another_key_than_ours_is_no_answer",
    "test_with_neither_the_only_one_online_is_published_after_half_a_minute",
    "test_with_neither_and_no_interface_to_wait_for_it_is_published_at_once",
    "test_with_neither_and_several_online_none_is_published",
    "test_an_address_that_is_somebody_elses_is_told_with_whose",
    "test_an_expired_node_is_not_registered",
    "test_a_user_that_cannot_be_told_is_said_once_and_no_exit",
    "test_the_only_user_is_taken_with_one_warning",
    "test_an_address_that_appears_is_asked_about_at_once",
    "test_an_address_that_headscale_does_not_know_yet_is_asked_about_soon",
    "test_looks_that_headscale_answered_count_up_to_the_last",
    "test_looks_that_headscale_did_not_answer_do_not_count",
    "test_a_node_that_was_there_once_is_waited_for_without_limit",
    "test_a_record_is_made_once",
    "test_a_record_of_ours_is_changed_in_place",
    "test_an_address_that_moved_is_followed_in_the_same_record",
    "test_trouble_at_headscale_changes_no_record_and_ends_nothing",
    "test_the_later_pod_has_the_name_and_neither_flaps",
    "test_a_pod_that_starts_anew_still_stands_down",
    "test_the_earlier_pod_takes_over_again_when_the_later_one_is_gone",
    "test_a_later_node_of_somebody_else_is_no_successor",
    "test_a_preview_writes_nothing_and_says_what_a_pass_would_do",
)

globals().update({name: getattr(over_http, name) for name in CASES})


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ClusterWorld]:
    with cluster_world(monkeypatch, tmp_path) as world:
        yield world
