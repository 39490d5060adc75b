"""Both commands, run from the image by containerd and runc with nothing more than a pod may count on."""

from __future__ import annotations

import json
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import lifecycle
from tests.image.tools import DEFAULT_CAPABILITIES, IMAGE, ROOT, Builds, Containerd, checked, eventually, run
from tests.in_cluster import HEADSCALE_NAMESPACE, MAY_EXEC, MAY_LIST_PODS, NAMESPACE, add_headscale
from tests.process.cluster import Authority
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.headscale_cli import HeadscaleCli
from tests.simulators.kubernetes import KubernetesSimulator
from tests.simulators.serve import serve

NAME = "grafana.example.com"
PYTHON = "/opt/lifecycle/bin/python"

HARDENED = (
    "--read-only",
    *(f"--cap-drop=CAP_{capability}" for capability in sorted(DEFAULT_CAPABILITIES)),
    "--seccomp",
)
"""A read-only root, no capability, no new privileges (containerd's default), the runtime's seccomp profile."""

STARTS = 9

SLEEP = "import time; time.sleep(600)"


@pytest.fixture(scope="module")
def runtime(first_build: Builds, workshop: Path) -> Iterator[Containerd]:
    """A containerd that has the image; no test here changes it."""
    containerd = Containerd(Path(tempfile.mkdtemp(prefix="c", dir=workshop)))
    containerd.start()
    checked([*containerd.ctr, "images", "import", first_build.archive.path])
    yield containerd
    containerd.stop()


@dataclass
class World:
    """A Headscale and a Cloudflare on loopback, with what an earlier pod of this service left in both."""

    headscale: HeadscaleSimulator
    cloudflare: CloudflareSimulator
    zone: str
    environment: list[str]

    def addresses(self) -> list[str]:
        return [record.content for record in self.cloudflare.records(self.zone, NAME)]


@pytest.fixture
def world() -> Iterator[World]:
    headscale, cloudflare = HeadscaleSimulator(), CloudflareSimulator()
    headscale.add_user("services")
    zone = cloudflare.add_zone("example.com")
    with serve(headscale) as headscale_url, serve(cloudflare) as cloudflare_url:
        settings = {
            "HEADSCALE_URL": headscale_url,
            "HEADSCALE_API_KEY": headscale.api_key,
            "HEADSCALE_USER": "services",
            "CLOUDFLARE_API_URL": f"{cloudflare_url}/client/v4",
            "CLOUDFLARE_API_TOKEN": cloudflare.token,
            "DOMAIN_NAME": "example.com",
            "TS_HOSTNAME": NAME,
            "POD_NAMESPACE": "default",
            "TAILSCALE_INTERFACE": "",
            "HEALTH_PORT": "0",
        }
        environment = [f"--env={name}={value}" for name, value in settings.items()]
        yield World(headscale, cloudflare, zone, environment)


@pytest.fixture
def key_volume(tmp_path: Path) -> Path:
    """An emptyDir of a pod with fsGroup 65532, which every container has as a group."""
    volume = tmp_path / "key"
    volume.mkdir()
    checked(["chown", "0:65532", volume])
    volume.chmod(0o2770)
    return volume


def mounted(key_volume: Path) -> str:
    return f"--mount=type=bind,src={key_volume},dst=/tailscale-auth,options=rbind:rw"


def finished(process: subprocess.Popen[str], *, within_s: float = 60) -> tuple[int, str]:
    """Exit status, and all it said on both streams."""
    said, errors = process.communicate(timeout=within_s)
    return process.returncode, said + errors


def test_the_image_runs_the_command(runtime: Containerd) -> None:
    with runtime.container("version", *HARDENED, image=IMAGE, command=["lifecycle", "--version"]) as process:
        assert finished(process) == (0, f"tailscale-lifecycle {lifecycle.__version__}\n")


def test_without_arguments_it_is_the_command_that_answers(runtime: Containerd) -> None:
    with runtime.container("usage", *HARDENED, image=IMAGE) as process:
        status, said = finished(process)
    assert status == 2
    assert said.startswith("usage: lifecycle")


def test_it_is_a_user_without_any_right(runtime: Containerd) -> None:
    read = "print(open('/proc/self/status').read())"
    with runtime.container("status", *HARDENED, image=IMAGE, command=[PYTHON, "-c", read]) as process:
        status, said = finished(process)
    assert status == 0, said
    about = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
    assert about["Uid"].split() == ["65532"] * 4
    assert about["Gid"].split() == ["65532"] * 4
    assert {int(about[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert about["NoNewPrivs"].strip() == "1"
    assert about["Seccomp"].strip() == "2"


@pytest.fixture
def stale(world: World) -> None:
    """What an earlier pod of this service left behind, at both services."""
    node = world.headscale.add_node(NAME, user="services", online=False)
    world.cloudflare.add_record(world.zone, type="A", name=NAME, content=node.address)


def assert_cleaned_up(world: World, key_volume: Path) -> None:
    assert world.headscale.nodes == []
    assert world.addresses() == []
    # The last: the one that the stale node came with is older.
    assert (key_volume / "authkey").read_text() == world.headscale.keys[-1].key
    assert (key_volume / "authkey").stat().st_mode & 0o777 == 0o640


def test_cleanup_cleans_up_and_writes_the_key(runtime: Containerd, world: World, stale: None, key_volume: Path) -> None:
    with runtime.container(
        "cleanup", *HARDENED, *world.environment, mounted(key_volume), image=IMAGE, command=["lifecycle", "cleanup"]
    ) as process:
        status, said = finished(process)
    assert status == 0, said
    assert_cleaned_up(world, key_volume)


def test_cleanup_works_as_any_other_user(runtime: Containerd, world: World, stale: None, key_volume: Path) -> None:
    """As with runAsUser: 12345 in the pod; a user that the image does not know."""
    with runtime.container(
        "pod", *HARDENED, *world.environment, mounted(key_volume), image=IMAGE, command=[PYTHON, "-c", SLEEP]
    ):
        eventually(lambda: "RUNNING" in checked([*runtime.ctr, "task", "ls"]), within_s=60, what="it runs")
        user = ["--exec-id", "cleanup", "--user", "12345:65532"]
        done = run([*runtime.ctr, "task", "exec", *user, "pod", "lifecycle", "cleanup"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (key_volume / "authkey").stat().st_uid == 12345
    assert_cleaned_up(world, key_volume)


def test_dns_watch_publishes_the_node_and_stops_when_asked_to(runtime: Containerd, world: World) -> None:
    node = world.headscale.add_node(NAME, user="services")
    with runtime.container(
        "dns-watch", *HARDENED, *world.environment, image=IMAGE, command=["lifecycle", "dns-watch"]
    ) as process:
        # Without an interface to look at, it waits half a minute for one before it goes by what Headscale says.
        eventually(lambda: world.addresses() == [node.address], within_s=60, what="the record is there")
        checked([*runtime.ctr, "task", "kill", "--signal", "SIGTERM", "dns-watch"])
        status, said = finished(process)
    assert status == 0, said
    assert json.loads(said.splitlines()[-1])["event"] == "stop.requested"


COMPILED = """
import atexit, importlib.util, os, sys
def uncompiled():
    return sorted(
        name for name, module in sys.modules.items()
        if (getattr(module, "__file__", None) or "").endswith(".py") and name != "__main__"
        and not os.path.exists(importlib.util.cache_from_source(module.__file__))
    )
atexit.register(lambda: print("uncompiled:", uncompiled()))
sys.argv = ["lifecycle", *sys.argv[1:]]
from lifecycle.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def service_account(world: World, tmp_path: Path) -> Iterator[list[str]]:
    """A Kubernetes API whose Headscale pod runs the command line, and a pod's way to it."""
    account = tmp_path / "serviceaccount"
    account.mkdir()
    authority = Authority(account)
    kubernetes = KubernetesSimulator()
    add_headscale(kubernetes, HeadscaleCli(world.headscale))
    kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
    (account / "token").write_text(kubernetes.token)
    (account / "namespace").write_text(NAMESPACE)
    with serve(kubernetes, tls=authority.server) as url:
        host, _, port = url.removeprefix("https://").partition(":")
        yield [
            "--env=HEADSCALE_ACCESS=exec",
            f"--env=KUBERNETES_SERVICE_HOST={host}",
            f"--env=KUBERNETES_SERVICE_PORT={port}",
            f"--mount=type=bind,src={account},dst=/var/run/secrets/kubernetes.io/serviceaccount,options=rbind:ro",
        ]


@pytest.fixture(params=["api", "exec"])
def access(request: pytest.FixtureRequest) -> list[str]:
    """Flags for each way to Headscale."""
    flags: list[str] = request.getfixturevalue("service_account") if request.param == "exec" else []
    return flags


@pytest.mark.parametrize("arguments", [["--version"], ["cleanup"], ["--dry-run"]], ids=" ".join)
def test_nothing_is_compiled_at_start(
    runtime: Containerd, world: World, key_volume: Path, access: list[str], arguments: list[str]
) -> None:
    """Python would compile it at each start, since it cannot keep what it made."""
    with runtime.container(
        "compiled",
        *HARDENED,
        *world.environment,
        *access,
        mounted(key_volume),
        image=IMAGE,
        command=[PYTHON, "-c", COMPILED, *arguments],
    ) as process:
        status, said = finished(process)
    assert status == 0, said
    assert said.splitlines()[-1] == "uncompiled: []"


def test_nothing_is_compiled_by_what_goes_on_running(runtime: Containerd, world: World, access: list[str]) -> None:
    """Until the record is there and a probe has been answered."""
    node = world.headscale.add_node(NAME, user="services")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with runtime.container(
        "watching",
        *HARDENED,
        *world.environment,
        *access,
        f"--env=HEALTH_PORT={port}",
        image=IMAGE,
        command=[PYTHON, "-c", COMPILED, "dns-watch"],
    ) as process:
        eventually(lambda: world.addresses() == [node.address], within_s=60, what="the record is there")
        for path in ("/livez", "/readyz", "/metrics"):
            assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200
        checked([*runtime.ctr, "task", "kill", "--signal", "SIGTERM", "watching"])
        status, said = finished(process)
    assert status == 0, said
    assert said.splitlines()[-1] == "uncompiled: []"


def test_it_starts_about_as_fast_as_outside(runtime: Containerd) -> None:
    """At most 1.3 times as long; one start of each in turn, so that a busy machine is as slow for both."""
    once = (
        "import subprocess, sys, time; begin = time.perf_counter(); "
        "subprocess.run([*sys.argv[1:], '--version'], check=True, stdout=subprocess.DEVNULL); "
        "print(time.perf_counter() - begin)"
    )
    inside, outside = [], []
    for _ in range(STARTS):
        with runtime.container(
            "start", *HARDENED, image=IMAGE, command=[PYTHON, "-c", once, "/usr/bin/lifecycle"]
        ) as process:
            status, said = finished(process)
        assert status == 0, said
        inside.append(float(said))
        outside.append(float(checked([sys.executable, "-c", once, ROOT / ".venv/bin/lifecycle"])))
    assert statistics.median(inside) <= 1.3 * statistics.median(outside)


def test_containers_end_for_good(runtime: Containerd) -> None:
    """What the tests above count on."""
    with runtime.container("endless", *HARDENED, image=IMAGE, command=[PYTHON, "-c", SLEEP]) as process:
        eventually(lambda: "RUNNING" in checked([*runtime.ctr, "task", "ls"]), within_s=60, what="it runs")
    assert process.returncode == 128 + signal.SIGKILL
    assert checked([*runtime.ctr, "containers", "ls", "-q"]) == ""
