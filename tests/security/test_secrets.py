"""No output contains a secret, for each command and failure, at debug level.

tests/faults checks the output of self-healing, which takes minutes, on a simulated clock.
"""

from __future__ import annotations

from random import Random

import pytest

from tests.builders import MARK, NAME
from tests.faults.schedule import FAULTS, UpstreamName
from tests.security.runs import Runs
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.serve import serve
from tests.tally import count

# Failures of Headscale are reported as text and those of Cloudflare as JSON; both have the same content.
OUTPUT: dict[UpstreamName, tuple[str, ...]] = {"headscale": (), "cloudflare": ("--output", "json")}


@pytest.mark.parametrize("upstream", ["headscale", "cloudflare"])
def test_output_of_a_failure_contains_no_secret(runs: Runs, upstream: UpstreamName) -> None:
    for kind, make in FAULTS.items():
        # Up to 0.27, the list of nodes contains complete pre-auth keys.
        headscale, cloudflare = HeadscaleSimulator("0.27.1"), CloudflareSimulator()
        headscale.add_user("svc")
        headscale.add_node(NAME, user="svc")
        zone_id = cloudflare.add_zone("example.com")
        with serve(headscale) as headscale_url, serve(cloudflare) as cloudflare_url:
            simulator = headscale if upstream == "headscale" else cloudflare
            commands = (
                ("cleanup",),
                ("dns-watch",),
                ("--dry-run", *OUTPUT[upstream]),
                ("dns-watch", "--once"),
                ("prune", *OUTPUT[upstream]),
                ("prune", "--name", NAME, "--yes"),
            )
            for number, command in enumerate(commands):
                cloudflare.add_record(zone_id, type="A", name=NAME, content=f"100.64.7.{number}", comment=MARK)
                simulator.faults.clear()
                # Faults start at the first, second or third request, to include partial work.
                simulator.faults.add(make(upstream, Random(1)), times=None, after=number % 3)
                result = runs.run(
                    *command,
                    HEADSCALE_URL=headscale_url,
                    HEADSCALE_API_KEY=headscale.api_key,
                    CLOUDFLARE_API_URL=f"{cloudflare_url}/client/v4",
                    CLOUDFLARE_API_TOKEN=cloudflare.token,
                    CLOUDFLARE_ZONE_ID=zone_id,
                    DOMAIN_NAME="example.com",
                    DNS_OWNER="default",
                    HTTP_TIMEOUT="0.3",
                )
                count("runs of commands through failures", kind)
                assert result.output, (command, kind)
                assert ("metrics" in result.texts) == (command == ("dns-watch",))
                assert "Traceback" not in result.output, result.output
                urls = "\n".join(
                    f"{request.path}?{request.query}" for request in headscale.requests + cloudflare.requests
                )
                for secret in headscale.secrets() + cloudflare.secrets():
                    count("secrets searched")
                    for where, text in {**result.texts, "URLs": urls}.items():
                        assert secret not in text, f"{' '.join(command)} with {kind} at {upstream}: secret in {where}"
            simulator.faults.clear()
