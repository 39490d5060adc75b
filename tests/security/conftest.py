"""The fixture `pod`: a pod, with simulators of Headscale and Cloudflare on loopback."""

from __future__ import annotations

import pytest

from tests.conftest import MakePod
from tests.process.commands import Pod


@pytest.fixture
def pod(make_pod: MakePod) -> Pod:
    """A pod with Headscale 0.27, the last release whose list of nodes contains complete pre-auth keys."""
    return make_pod("0.27.1")
