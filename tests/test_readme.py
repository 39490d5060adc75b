"""The manual's first steps: Kubernetes takes its manifest, the commands take its settings, its links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lifecycle.cli import HEADSCALE_RETRY_BUDGET
from lifecycle.clients.http import MAX_ANSWER_BYTES
from lifecycle.dns_watch.healing import CONFIRMING_OBSERVATIONS, CONFIRMING_S
from lifecycle.domain.expiry import WARN_BEFORE
from lifecycle.prune.run import OBSERVATION_S
from lifecycle.runtime.stop import GRACE_S
from lifecycle.settings.fields import parse_duration
from lifecycle.settings.models import CleanupSettings, DryRunSettings, PruneSettings, every_variable, load
from tests.faults.test_schedules import SCHEDULES, SOAK
from tests.fleet.fleet import BCRYPT_S
from tests.test_docs import quoted, rows, section

ROOT = Path(__file__).parent.parent
COMPATIBILITY = (("README.md", "## Compatibility"), ("docs/compatibility.md", "## What is supported"))
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def block(kind: str, marker: str, page: str = "README.md") -> str:
    """The one block of a kind in a page in which something stands."""
    blocks = re.findall(rf"^```{kind}\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    [found] = [text for text in blocks if marker in text]
    return str(found)


@pytest.fixture
def pod() -> dict[str, Any]:
    manifest = yaml.safe_load(block("yaml", "kind: StatefulSet"))
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version().rpartition(".")[0], strict=True)
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


def containers(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {container["name"]: container for container in [*pod["initContainers"], *pod["containers"]]}


def test_every_mount_of_the_first_manifest_is_a_volume_of_the_pod(pod: dict[str, Any]) -> None:
    mounted = {mount["name"] for container in containers(pod).values() for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_our_containers_of_the_first_manifest_have_settings_of_ours(pod: dict[str, Any]) -> None:
    for name in ("cleanup", "dns-watch"):
        assert {variable["name"] for variable in containers(pod)[name]["env"]} <= every_variable()


def test_a_restart_of_the_first_manifests_tailscale_shows_no_key_that_is_used(pod: dict[str, Any]) -> None:
    """Its state lies on a volume, which outlives the container."""
    tailscale = containers(pod)["tailscale"]
    settings = {variable["name"]: variable["value"] for variable in tailscale["env"]}
    places = {mount["mountPath"]: mount["name"] for mount in tailscale["volumeMounts"]}
    assert settings["TS_STATE_DIR"] in places
    assert settings["TS_AUTH_ONCE"] == "true"
    key_file = settings["TS_AUTHKEY"].removeprefix("file:")
    volume = places[str(Path(key_file).parent)]
    assert volume in {mount["name"] for mount in containers(pod)["cleanup"]["volumeMounts"]}


def written_by(page: str) -> str:
    """The `.env` of a page's dry run, with something for what is left out of it."""
    found = re.search(r"<<'END'\n(.*?)^END$", block("sh", "--dry-run", page), flags=re.MULTILINE | re.DOTALL)
    assert found
    return found[1].replace("=...", "=a-token")


@pytest.mark.parametrize(("page", "access"), [("README.md", "exec"), ("docs/move-from-terraform.md", "api")])
def test_the_settings_of_the_first_dry_run_are_whole(page: str, access: str) -> None:
    Path(".env").write_text(written_by(page))
    settings = load(DryRunSettings)
    assert (settings.access, settings.mark) == (access, "tailscale-lifecycle/1 services")
    assert not settings.tailscale_interface


def test_the_settings_of_a_dry_run_take_a_service_down() -> None:
    """As docs/operations.md says."""
    Path(".env").write_text(written_by("docs/move-from-terraform.md"))
    assert load(PruneSettings).dns_owner == "services"


def test_the_cores_that_headscale_needs_are_the_simulators() -> None:
    """An interval is an eighth longer than its setting, on average."""
    table = rows(section((ROOT / "docs/scaling.md").read_text(), "## Headscale"))
    assert len(table) == 3
    for row in table:
        interval = parse_duration(quoted(row["`POLL_INTERVAL`"])[0]).total_seconds()
        needed = int(row["pods"].replace(",", "")) * BCRYPT_S / (interval * 1.125)
        assert float(row["cores"]) == round(needed, 1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_releases_of_the_manual_are_those_of_the_page_that_says_what_was_run() -> None:
    pages = (section((ROOT / name).read_text(), heading) for name, heading in COMPATIBILITY)
    here, there = ([re.sub(r" \(.*", "", row["Headscale"]) for row in rows(text)] for text in pages)
    assert here == there
    assert len(here) == 5


SPELT = {2: "two", 3: "three", 15: "a quarter of an hour"}


@pytest.mark.parametrize(
    ("page", "phrase"),
    [
        ("README.md", f"Headscale did not answer for {SPELT[HEADSCALE_RETRY_BUDGET // timedelta(minutes=1)]} minutes"),
        ("README.md", f"after a second look {SPELT[int(OBSERVATION_S // 60)]} later"),
        ("README.md", f"once a day, from {WARN_BEFORE.days} days before"),
        ("README.md", f"{SPELT[CONFIRMING_OBSERVATIONS]} looks over a minute"),
        ("README.md", "SIGTERM ends each command within two seconds"),
        ("SECURITY.md", f"warns from {WARN_BEFORE.days} days on"),
        ("SECURITY.md", f"to {MAX_ANSWER_BYTES >> 20} MiB after unpacking"),
        ("SECURITY.md", f"mode {CleanupSettings.model_fields['authkey_file_mode'].default:04o}"),
        ("docs/architecture.md", f"a pass that does not end in {GRACE_S} s is cut off"),
        (
            "docs/scaling.md",
            f"`cleanup` gives Headscale {SPELT[HEADSCALE_RETRY_BUDGET // timedelta(minutes=1)]} minutes",
        ),
        (
            "docs/scaling.md",
            f"{SCHEDULES} schedules of faults in each test run, `scripts/test --soak tests/faults` for {SOAK:,}",
        ),
        ("docs/scaling.md", f"some {BCRYPT_S * 1000:.0f} ms of a core"),
    ],
)
def test_the_pages_numbers_are_the_codes(page: str, phrase: str) -> None:
    assert phrase in " ".join((ROOT / page).read_text().split())
    assert CONFIRMING_S == 60
    assert GRACE_S < 2
    assert SCHEDULES >= 500


def test_the_picture_of_the_imports_is_the_linters() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    drawn = re.search(r"^```\n(cli\n.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert drawn
    rows_drawn = [set(re.sub(r"\(.*\)", "", line).split()) for line in drawn[1].splitlines()]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [layers] = [kind["layers"] for kind in project["tool"]["importlinter"]["contracts"] if kind["type"] == "layers"]
    assert rows_drawn == [{name.removeprefix("lifecycle.") for name in layer.split(" : ")} for layer in layers]
