"""Run the real commands as processes against simulators, and measure their resources, for scripts/bench."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.in_cluster import HEADSCALE_NAMESPACE, MAY_EXEC, MAY_LIST_PODS, NAMESPACE, add_headscale
from tests.process.cluster import Authority, serve_to_pod, with_service_account
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.headscale_cli import HeadscaleCli
from tests.simulators.kubernetes import KubernetesSimulator
from tests.simulators.serve import serve
from tests.simulators.vpn_client import VpnClient

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

NAME = "grafana.example.com"
# The comment that the program writes into its records.
RECORD_COMMENT = "tailscale-lifecycle/1 default"

# The longest time to wait for a process or a condition.
TIMEOUT_S = 30.0

REPOSITORY = Path(__file__).resolve().parent.parent
# The interpreter of the venv without development tools, which scripts/bench creates.
PYTHON = str(REPOSITORY / ".venv" / "runtime" / "bin" / "python")

# The code of a small Python process that runs the measured command and prints its cost. If the benchmark started the
# command directly, Linux would count the benchmark's memory at the time of the fork as peak memory of the command.
_LAUNCH = """
import json, os, sys, time
started = time.monotonic()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ,
                     file_actions=[(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)])
_, status, used = os.wait4(pid, 0)
print(json.dumps([time.monotonic() - started, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """The resources that a process used until it exited: elapsed time, CPU time and peak memory."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def measure(arguments: Sequence[str], *, wrapper: Sequence[str] = (), **environment: str) -> Cost:
    """Run Python until it exits, and return its cost.

    Args:
        arguments: the arguments of Python.
        wrapper: a command that runs the command after it, such as `unshare --mount`.
        environment: the environment variables except PATH.
    """
    done = subprocess.run(
        [*wrapper, PYTHON, "-I", "-S", "-c", _LAUNCH, PYTHON, *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        stdout=subprocess.PIPE,
        check=True,
    )
    return Cost(*json.loads(done.stdout))


def wait_until(condition: Callable[[], bool], *, interval_s: float = 0.005) -> float:
    """Wait until a condition is true, and return the seconds that passed."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > TIMEOUT_S:
            raise TimeoutError(f"the condition was not met within {TIMEOUT_S:g} s")
        time.sleep(interval_s)
    return time.monotonic() - started


class Delayed:
    """A simulated upstream (Headscale or Cloudflare) that delays each response and counts the requests."""

    def __init__(self, app: WSGIApplication, delay_s: float) -> None:
        self._app = app
        self._delay_s = delay_s
        self.request_count = 0

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Respond after the delay."""
        self.request_count += 1
        time.sleep(self._delay_s)
        return self._app(environ, start_response)

    def received(self, number: int) -> bool:
        """Return True if at least this number of requests arrived."""
        return self.request_count >= number


class World:
    """Simulators of Headscale and Cloudflare, and functions that run the commands against these simulators.

    Args:
        folder: the folder for the key file.
        nodes: the number of nodes of other workloads in Headscale.
    """

    def __init__(self, folder: Path, *, nodes: int = 0) -> None:
        self.headscale = HeadscaleSimulator()
        self.cloudflare = CloudflareSimulator()
        self.headscale.keep_bodies = self.cloudflare.keep_bodies = False
        self.headscale.add_user("services")
        for number in range(nodes):
            self.headscale.add_node(f"other-{number}.example.com", user="services")
        self.zone = self.cloudflare.add_zone("example.com")
        self.key_file = folder / "authkey"
        self.environment: dict[str, str] = {}

    @contextmanager
    def served(self, delay_s: float = 0.0) -> Iterator[tuple[Delayed, Delayed]]:
        """Serve both simulators during the block. They delay each response by this number of seconds."""
        headscale, cloudflare = Delayed(self.headscale, delay_s), Delayed(self.cloudflare, delay_s)
        with serve(headscale) as headscale_url, serve(cloudflare) as cloudflare_url:
            self.environment = {
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(REPOSITORY),
                "HOSTNAME": "grafana-0",
                "DOMAIN_NAME": "example.com",
                "HEADSCALE_URL": headscale_url,
                "HEADSCALE_API_KEY": self.headscale.api_key,
                "HEADSCALE_USER": "services",
                "CLOUDFLARE_API_URL": f"{cloudflare_url}/client/v4",
                "CLOUDFLARE_API_TOKEN": self.cloudflare.secrets()[0],
                "CLOUDFLARE_ZONE_ID": self.zone,
                "DNS_OWNER": "default",
                "AUTHKEY_OUTPUT_PATH": str(self.key_file),
                "TAILSCALE_INTERFACE": "",
                "HEALTH_PORT": "0",
            }
            yield headscale, cloudflare

    def add_leftovers(self) -> None:
        """Add the node of an earlier pod, and replace the workload's record by one with this node's address."""
        node = self.headscale.add_node(NAME, user="services", online=False)
        for record in self.cloudflare.records(self.zone, NAME):
            self.cloudflare.remove_record(record.id)
        self.cloudflare.add_record(self.zone, type="A", name=NAME, content=node.address, ttl=60, comment=RECORD_COMMENT)

    def run(self, *arguments: str) -> Cost:
        """Run a command of the program until it exits, and return its cost."""
        return measure(["-m", "lifecycle", *arguments], **self.environment)

    def register(self, interface: str | None = None) -> VpnClient:
        """Register a node with the pre-auth key in the key file, as the tailscale container does.

        Args:
            interface: the network interface that gets the node's address; no interface by default.
        """
        client = VpnClient(self.headscale, key_file=self.key_file, hostname=NAME, interface=interface)
        client.start()
        return client

    @contextmanager
    def watching(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run `dns-watch` during the block, with these additional variables."""
        command = [PYTHON, "-m", "lifecycle", "dns-watch"]
        process = subprocess.Popen(command, env=self.environment | environment, stdout=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(TIMEOUT_S)

    def is_published(self, node: VpnClient) -> bool:
        """Return True if the workload has exactly one record, and the record has the address of this node."""
        return [record.content for record in self.cloudflare.records(self.zone, NAME)] == [node.addresses[0]]


@contextmanager
def running_over_exec(world: World, folder: Path) -> Iterator[Callable[[str], Cost]]:
    """Serve a simulated Kubernetes API with Headscale's pod. The simulators of `world` must be served already.

    Yields:
        A function that runs a command with HEADSCALE_ACCESS=exec in a pod, and returns its cost.
    """
    kubernetes = KubernetesSimulator()
    add_headscale(kubernetes, HeadscaleCli(world.headscale))
    kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
    account = folder / "serviceaccount"
    with serve_to_pod(kubernetes, Authority(folder), account=account, namespace=NAMESPACE) as variables:
        environment = world.environment | variables | {"HEADSCALE_URL": "", "HEADSCALE_API_KEY": ""}
        wrapper = [str(word) for word in with_service_account(account)]
        yield lambda command: measure(["-m", "lifecycle", *command.split()], wrapper=wrapper, **environment)


def memory_of_passes(world: World, number: int) -> list[float]:
    """Run this number of passes of `dns-watch`. Return its memory in MiB after a tenth of the passes and after all."""
    done = subprocess.run(
        [PYTHON, str(REPOSITORY / "scripts" / "bench_passes.py"), str(number)],
        env=world.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [float(line) for line in done.stderr.split()]
