"""Tests of the commands in the image. containerd runs them with the restrictions of a hardened pod."""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

import lifecycle
from tests.builders import NAME
from tests.image.tools import DEFAULT_CAPABILITIES, IMAGE, ROOT, Containerd, ImageBuild, run, run_checked
from tests.in_cluster import HEADSCALE_NAMESPACE, MAY_EXEC, MAY_LIST_PODS, NAMESPACE, add_headscale
from tests.process.cluster import Authority, serve_to_pod
from tests.process.commands import Pod
from tests.real.programs import eventually
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.headscale_cli import HeadscaleCli
from tests.simulators.kubernetes import KubernetesSimulator

PYTHON = "/opt/lifecycle/bin/python"

HARDENED = (
    "--read-only",
    *(f"--cap-drop=CAP_{capability}" for capability in sorted(DEFAULT_CAPABILITIES)),
    "--seccomp",
)
"""A read-only root, no capabilities, no new privileges (containerd's default) and the default seccomp profile."""

STARTS = 9
"""The number of measured starts of the program."""

SLEEP = "import time; time.sleep(600)"


@pytest.fixture(scope="module")
def runtime(shared_build: ImageBuild, scratch_dir: Path) -> Iterator[Containerd]:
    """A containerd that has the image. Tests must not change the image."""
    containerd = Containerd(Path(tempfile.mkdtemp(prefix="c", dir=scratch_dir)))
    containerd.start()
    run_checked([*containerd.ctr, "images", "import", shared_build.archive.path])
    yield containerd
    containerd.stop()


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Pod]:
    """A pod whose volume has the owner and mode of an emptyDir volume in a pod with fsGroup 65532."""
    with ExitStack() as stack:
        pod = Pod(HeadscaleSimulator(), environment={}, working_directory=tmp_path, stack=stack)
        pod.headscale.add_user("services")
        # containerd replaces the variable HOSTNAME by the name of this machine.
        pod.environment |= {"TS_HOSTNAME": NAME, "TAILSCALE_INTERFACE": "", "HEALTH_PORT": "0"}
        # The default is the path at which `flags_of` mounts the volume.
        del pod.environment["AUTHKEY_OUTPUT_PATH"]
        run_checked(["chown", "0:65532", pod.volume])
        pod.volume.chmod(0o2770)
        yield pod


def flags_of(pod: Pod) -> list[str]:
    """Return flags of `ctr run` for a container of the pod."""
    volume = f"--mount=type=bind,src={pod.volume},dst=/tailscale-auth,options=rbind:rw"
    return [volume, *(f"--env={name}={value}" for name, value in pod.environment.items())]


def exit_status_and_output(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait until a process has ended. The output is that of both streams."""
    output, errors = process.communicate(timeout=60)
    return process.returncode, output + errors


def run_container(runtime: Containerd, *command: str, flags: Sequence[str] = ()) -> tuple[int, str]:
    """Run a hardened container until it ends. Return its exit status and the output of both streams."""
    with runtime.container("until-end", *HARDENED, *flags, image=IMAGE, command=command) as process:
        return exit_status_and_output(process)


def test_image_runs_the_command(runtime: Containerd) -> None:
    assert run_container(runtime, "lifecycle", "--version") == (0, f"tailscale-lifecycle {lifecycle.__version__}\n")


def test_image_without_arguments_prints_the_usage(runtime: Containerd) -> None:
    status, output = run_container(runtime)
    assert status == 2
    assert output.startswith("usage: lifecycle")


def test_process_is_unprivileged(runtime: Containerd) -> None:
    status, output = run_container(runtime, PYTHON, "-c", "print(open('/proc/self/status').read())")
    assert status == 0, output
    fields = dict(line.split(":", 1) for line in output.splitlines() if ":" in line)
    assert fields["Uid"].split() == ["65532"] * 4
    assert fields["Gid"].split() == ["65532"] * 4
    assert {int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert fields["NoNewPrivs"].strip() == "1"
    assert fields["Seccomp"].strip() == "2"


def test_cleanup_runs_as_any_user(runtime: Containerd, pod: Pod) -> None:
    """User 12345 is not in the image's /etc/passwd. A pod can select any user with `runAsUser`."""
    pod.add_leftovers(user="services")
    with runtime.container("pod", *HARDENED, *flags_of(pod), image=IMAGE, command=[PYTHON, "-c", SLEEP]):
        eventually(lambda: "RUNNING" in run_checked([*runtime.ctr, "task", "ls"]), "the container is running")
        user = ["--exec-id", "cleanup", "--user", "12345:65532"]
        done = run([*runtime.ctr, "task", "exec", *user, "pod", "lifecycle", "cleanup"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert pod.headscale.nodes == []
    assert pod.records() == {}
    # The simulator has an older key, too: that of the stale node.
    assert pod.key_file.read_text() == pod.headscale.keys[-1].key
    assert (pod.key_file.stat().st_mode & 0o777, pod.key_file.stat().st_uid) == (0o640, 12345)


# A Python script that runs the program, and prints at exit which imported modules have no byte code. The program ends
# with os._exit, which calls no atexit functions, so the script replaces it.
PRINT_UNCOMPILED = """
import atexit, importlib.util, os, sys
def uncompiled():
    return sorted(
        name for name, module in sys.modules.items()
        if (getattr(module, "__file__", None) or "").endswith(".py") and name != "__main__"
        and not os.path.exists(importlib.util.cache_from_source(module.__file__))
    )
atexit.register(lambda: print("uncompiled:", uncompiled()))
sys.argv = ["lifecycle", *sys.argv[1:]]
os._exit = sys.exit
from lifecycle.__main__ import main
sys.exit(main())
"""


@pytest.fixture
def service_account(pod: Pod, tmp_path: Path) -> Iterator[list[str]]:
    """Flags of `ctr run` for a container that reaches Headscale through a simulated Kubernetes API."""
    account = tmp_path / "serviceaccount"
    kubernetes = KubernetesSimulator()
    add_headscale(kubernetes, HeadscaleCli(pod.headscale))
    kubernetes.allow(HEADSCALE_NAMESPACE, MAY_LIST_PODS, MAY_EXEC)
    with serve_to_pod(kubernetes, Authority(tmp_path), account=account, namespace=NAMESPACE) as variables:
        yield [
            "--env=HEADSCALE_ACCESS=exec",
            *(f"--env={name}={value}" for name, value in variables.items()),
            f"--mount=type=bind,src={account},dst=/var/run/secrets/kubernetes.io/serviceaccount,options=rbind:ro",
        ]


@pytest.fixture(params=["api", "exec"])
def access(request: pytest.FixtureRequest) -> list[str]:
    """Flags of `ctr run` for access to Headscale through its API or its pod."""
    flags: list[str] = request.getfixturevalue("service_account") if request.param == "exec" else []
    return flags


@pytest.mark.parametrize("arguments", [["--version"], ["cleanup"], ["--dry-run"]], ids=" ".join)
def test_commands_load_only_compiled_modules(
    runtime: Containerd, pod: Pod, access: list[str], arguments: list[str]
) -> None:
    """The root is read-only, so Python would compile modules without byte code again at each start."""
    status, output = run_container(runtime, PYTHON, "-c", PRINT_UNCOMPILED, *arguments, flags=[*flags_of(pod), *access])
    assert status == 0, output
    assert output.splitlines()[-1] == "uncompiled: []"


def test_dns_watch_loads_only_compiled_modules(runtime: Containerd, pod: Pod, access: list[str]) -> None:
    """`dns-watch` runs until the record exists and the health endpoints were requested."""
    node = pod.headscale.add_node(NAME, user="services")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with runtime.container(
        "watching",
        *HARDENED,
        *flags_of(pod),
        *access,
        f"--env=HEALTH_PORT={port}",
        image=IMAGE,
        command=[PYTHON, "-c", PRINT_UNCOMPILED, "dns-watch"],
    ) as process:
        # Without an interface, dns-watch waits 30 s before it identifies its node in Headscale.
        eventually(lambda: list(pod.records()) == [f"A {node.address}"], "the record exists", timeout_s=90)
        for path in ("/livez", "/readyz", "/metrics"):
            assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == 200
        run_checked([*runtime.ctr, "task", "kill", "--signal", "SIGTERM", "watching"])
        status, output = exit_status_and_output(process)
    assert status == 0, output
    assert output.splitlines()[-1] == "uncompiled: []"
    assert json.loads(output.splitlines()[-2])["event"] == "stop.requested"


def test_start_in_container_is_about_as_fast_as_in_venv(runtime: Containerd) -> None:
    """The starts in the container and in the venv alternate, so that other load on the machine affects both."""
    measure = (
        "import subprocess, sys, time; begin = time.perf_counter(); "
        "subprocess.run([*sys.argv[1:], '--version'], check=True, stdout=subprocess.DEVNULL); "
        "print(time.perf_counter() - begin)"
    )
    inside, outside = [], []
    for _ in range(STARTS):
        status, output = run_container(runtime, PYTHON, "-c", measure, "/usr/bin/lifecycle")
        assert status == 0, output
        inside.append(float(output))
        outside.append(float(run_checked([sys.executable, "-c", measure, ROOT / ".venv/bin/lifecycle"])))
    assert statistics.median(inside) <= 1.3 * statistics.median(outside)
