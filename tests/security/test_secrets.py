"""Test that no output contains a secret, for each command and kind of failure, at debug level.

The tests do not wait for recovery, which takes minutes. tests/faults checks it with a simulated clock.
"""

from __future__ import annotations

from contextlib import suppress
from random import Random

import httpx
import pytest

from tests.builders import NAME, OUR_COMMENT
from tests.faults.schedule import FAULTS, UpstreamName
from tests.process.commands import Pod
from tests.real.programs import free_ports
from tests.tally import add_to_count

# If Headscale fails, reports are checked as text. If Cloudflare fails, reports are checked as JSON.
REPORT_FORMAT: dict[UpstreamName, tuple[str, ...]] = {"headscale": (), "cloudflare": ("--output", "json")}

# dns-watch logs one of PASS_EVENTS after each iteration of its loop. Other commands log RETRY_EVENTS before a retry.
PASS_EVENTS = ("pass.failed", "pass.skipped", "pass.finished")
RETRY_EVENTS = ("retry.scheduled",)


def run(pod: Pod, *command: str) -> dict[str, str]:
    """Run a command until it ends or would repeat its steps. Return what it has written and requested, by place."""
    for file in pod.volume.iterdir():
        file.unlink()
    pod.termination_log.write_text("")
    (port,) = free_ports(1)
    running = pod.start(
        *command,
        DNS_OWNER="default",
        HEALTH_ADDRESS="127.0.0.1",
        HEALTH_PORT=str(port),
        HTTP_TIMEOUT="0.3",
        LOG_LEVEL="debug",
    )
    texts = {}
    if running.find_event(*(PASS_EVENTS if command[0] == "dns-watch" else RETRY_EVENTS)):
        if command == ("dns-watch",):
            texts = request_health_endpoints(port)
        texts["output"] = running.stop().output
    else:
        texts["output"] = running.wait().output
    texts["termination log"] = pod.termination_log.read_text()
    texts["files"] = "".join(
        f"{file.name}: {file.read_text()}" for file in pod.volume.iterdir() if file.name != "authkey"
    )
    requests = pod.headscale.requests + pod.cloudflare.requests
    texts["URLs"] = "\n".join(f"{request.path}?{request.query}" for request in requests)
    return texts


def request_health_endpoints(port: int) -> dict[str, str]:
    responses = {}
    for path in ("metrics", "readyz", "nodez", "livez"):
        with suppress(httpx.TransportError):
            responses[path] = httpx.get(f"http://127.0.0.1:{port}/{path}").text
    return responses


@pytest.mark.parametrize("upstream", ["headscale", "cloudflare"])
@pytest.mark.parametrize("kind", FAULTS)
def test_output_of_a_failure_contains_no_secret(pod: Pod, upstream: UpstreamName, kind: str) -> None:
    pod.headscale.add_node(NAME, user="svc")
    simulator = pod.headscale if upstream == "headscale" else pod.cloudflare
    commands = (
        ("cleanup",),
        ("dns-watch",),
        ("--dry-run", *REPORT_FORMAT[upstream]),
        ("dns-watch", "--once"),
        ("prune", *REPORT_FORMAT[upstream]),
        ("prune", "--name", NAME, "--yes"),
    )
    for number, command in enumerate(commands):
        pod.cloudflare.add_record(pod.zone_id, type="A", name=NAME, content=f"100.64.7.{number}", comment=OUR_COMMENT)
        simulator.faults.clear()
        # Faults start at the first, second or third request, so that a part of the work can be done.
        simulator.faults.add(FAULTS[kind](upstream, Random(1)), times=None, after=number % 3)
        texts = run(pod, *command)
        add_to_count("runs of commands during failures", kind)
        assert texts["output"], command
        assert "Traceback" not in texts["output"]
        assert ("metrics" in texts) == (command == ("dns-watch",))
        for place, text in texts.items():
            assert pod.secrets_in(text) == [], f"{' '.join(command)}: a secret is in the {place}"
        add_to_count("secrets searched", by=len(pod.headscale.secrets()) + len(pod.cloudflare.secrets()))
