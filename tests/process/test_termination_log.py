"""The reason of an end stands where `kubectl describe pod` shows it, if there is such a place."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from wsgiref.types import WSGIApplication

import pytest

from tests.process.commands import HANGS_AFTER_S, PROGRAM, Doorbell, Ended, Pod, Running
from tests.simulators import faults

# A /dev of its own, in a mount namespace of its own: the machine's stays as it is.
IN_OWN_DEV = """
out=$1 make=$2; shift 2
mount -t tmpfs none /dev
eval "$make"
"$@"
status=$?
test -e /dev/termination-log && cat /dev/termination-log >"$out"
exit "$status"
"""

FILE = ": >/dev/termination-log"
NOTHING = ":"
# One that is seen from outside, so that the program can take the shell's place and be asked to stop.
SHARED = ': >"$out"; : >/dev/termination-log; mount --bind "$out" /dev/termination-log; exec "$@"'
READ_ONLY = "echo before >/dev/file; : >/dev/termination-log; mount --bind -o ro /dev/file /dev/termination-log"


@functools.cache
def _why_not() -> str | None:
    """Why no mount namespace can be made here; None when one can."""
    if shutil.which("unshare") is None:
        return "unshare is not installed (util-linux)"
    tried = subprocess.run(
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /dev"], check=False, capture_output=True, text=True
    )
    return None if tried.returncode == 0 else f"needs the right to mount, as root has it: {tried.stderr.strip()}"


@pytest.fixture(autouse=True)
def _own_dev() -> None:
    if reason := _why_not():
        pytest.skip(reason)


def start(pod: Pod, *arguments: str, make: str, **variables: str) -> tuple[Running, Path]:
    """A command, and where to find what it leaves in the termination log."""
    out = pod.folder / "last-words"
    command = ["unshare", "--mount", "sh", "-c", IN_OWN_DEV, "sh", str(out), make, PROGRAM, *arguments]
    return pod.start_command(*command, **variables), out


def last_words(pod: Pod, *arguments: str, make: str = FILE, **variables: str) -> tuple[Ended, str | None]:
    """How a command ended, and what stood in the termination log then; None = there was no such file."""
    running, out = start(pod, *arguments, make=make, **variables)
    ended = running.end()
    return ended, out.read_text() if out.exists() else None


@pytest.mark.parametrize(
    ("arguments", "variables", "status", "told"),
    [
        pytest.param(["cleanup"], {"HEADSCALE_USER": "bob"}, 1, "no user called bob", id="could-not"),
        pytest.param(
            ["cleanup"], {"CLOUDFLARE_ZONE_ID": "x", "DOMAIN_NAME": ""}, 2, "CLOUDFLARE_ZONE_ID: must", id="settings"
        ),
        pytest.param(["cleanup", "--once"], {}, 2, "unrecognized arguments: --once", id="usage"),
        pytest.param(
            ["dns-watch"],
            {"TAILSCALE_INTERFACE": "", "MAX_RETRIES": "1", "HEALTH_PORT": "0"},
            1,
            "was not there in 1 looks",
            id="not-registered",
        ),
    ],
)
def test_the_reason_is_left_there(
    pod: Pod, arguments: list[str], variables: dict[str, str], status: int, told: str
) -> None:
    ended, words = last_words(pod, *arguments, **variables)
    assert ended.status == status
    assert words is not None
    assert told in words
    assert status == 2 or words == ended.last["error"]


def test_a_dry_run_that_could_not_read_everything_leaves_why(pod: Pod) -> None:
    ended, words = last_words(pod, "--dry-run", HEADSCALE_USER="bob")
    assert ended.status == 1
    assert words is not None
    assert "no user called bob" in words


@pytest.mark.parametrize(
    ("arguments", "logged"),
    [
        pytest.param(["cleanup"], ["settings.loaded", "stop.requested"], id="cleanup"),
        pytest.param(["prune", "--yes"], ["settings.loaded", "stop.requested"], id="prune"),
        pytest.param(["--dry-run"], [], id="dry-run"),
        pytest.param(["prune"], [], id="prune-without-yes"),
    ],
)
def test_a_stop_while_a_request_hangs_leaves_why(
    make_pod: Callable[..., Pod], arguments: list[str], logged: list[str]
) -> None:
    bells: list[Doorbell] = []

    def with_a_bell(application: WSGIApplication) -> Doorbell:
        bells.append(Doorbell(application))
        return bells[0]

    pod = make_pod(before=with_a_bell)
    pod.headscale.faults.add(faults.hang(limit_s=3600), times=None)
    running, out = start(pod, *arguments, make=SHARED, HTTP_TIMEOUT="1h", DNS_OWNER="monitoring")
    assert bells[0].rang.wait(HANGS_AFTER_S)
    ended = running.stop()
    assert ended.status == 1
    assert [event["event"] for event in ended.events] == logged
    assert out.read_text() == "stopped by SIGTERM before the work was done; nothing needs undoing"
    assert pod.untouched


def test_a_reason_is_not_longer_than_the_kubelet_takes(pod: Pod) -> None:
    for number in range(400):
        pod.headscale.add_user(f"user-{number:04d}")
    ended, words = last_words(pod, "cleanup")
    assert ended.status == 1
    assert words is not None
    assert len(words.encode()) == 4096
    assert ended.last["error"].startswith(words)


def test_done_leaves_no_words(pod: Pod) -> None:
    ended, words = last_words(pod, "cleanup")
    assert (ended.status, words) == (0, "")


def test_no_such_file_is_made(pod: Pod) -> None:
    ended, words = last_words(pod, "cleanup", make=NOTHING, HEADSCALE_USER="bob")
    assert (ended.status, ended.errors, words) == (1, "", None)


def test_a_file_that_cannot_be_written_is_left_as_it_is(pod: Pod) -> None:
    ended, words = last_words(pod, "cleanup", make=READ_ONLY, HEADSCALE_USER="bob")
    assert (ended.status, ended.errors, words) == (1, "", "before\n")


def test_no_secret_is_left_there(pod: Pod) -> None:
    pod.headscale.faults.add(faults.answer(500, pod.headscale.api_key, content_type="text/plain"), path="/none")
    ended, words = last_words(pod, "cleanup", HEADSCALE_API_KEY="hskey-api-wrong-0123456789")
    assert ended.status == 1
    assert words is not None
    assert "hskey-api-wrong-0123456789" not in words
    assert not Path(pod.key_file).exists()
