"""The fixture `pod`: a pod, with simulators of Headscale and Cloudflare on loopback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.process.commands import Pod, served_pod
from tests.simulators.headscale import HeadscaleSimulator


@pytest.fixture
def pod(clean_environment: Mapping[str, str], tmp_path: Path) -> Iterator[Pod]:
    """A pod with Headscale 0.27, the last release whose list of nodes contains complete pre-auth keys."""
    with served_pod(clean_environment, tmp_path, HeadscaleSimulator("0.27.1")) as pod:
        pod.headscale.add_user("svc")
        yield pod
