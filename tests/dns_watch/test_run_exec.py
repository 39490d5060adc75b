"""Run tests of test_run.py with HEADSCALE_ACCESS=exec.

With this setting, dns-watch does not use Headscale's HTTP API. It runs Headscale's command line in Headscale's pod.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dns_watch import test_run as over_http
from tests.dns_watch.test_run import node, watch
from tests.in_cluster import ClusterWorld

__all__ = ["node", "watch"]

# The other tests do not depend on how Headscale is reached, or need the HTTP API.
SCENARIOS = (
    "test_the_node_with_the_interfaces_address_is_published",
    "test_without_an_interface_the_node_that_used_our_key_is_published",
    "test_the_only_online_node_is_published_after_the_grace_period",
    "test_the_only_online_node_is_published_immediately_on_the_host_network",
    "test_an_ambiguous_or_unknown_user_is_reported_once_and_does_not_end_dns_watch",
    "test_an_address_that_appears_is_published_within_a_second_or_two",
    "test_an_address_that_headscale_does_not_list_yet_is_polled_frequently",
    "test_a_missing_record_is_created_once",
    "test_our_record_is_updated_in_place",
    "test_a_changed_address_updates_the_same_record",
    "test_headscale_failures_change_no_record_and_do_not_end_dns_watch",
)

globals().update({name: getattr(over_http, name) for name in SCENARIOS})


@pytest.fixture
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ClusterWorld:
    """Simulators of Headscale, Cloudflare and Kubernetes, and a simulated clock. See the fixture in conftest.py."""
    return ClusterWorld(monkeypatch, tmp_path, getattr(request, "param", "0.28.0"))
