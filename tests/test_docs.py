"""Test that the links in the Markdown pages work, and that the names and values in the pages are those of the code."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lifecycle.clients.headscale.errors import HEADSCALE
from lifecycle.clients.http import MAX_RESPONSE_BYTES
from lifecycle.commands import CLEANUP_RETRY_BUDGET, PRUNE_RETRY_BUDGET
from lifecycle.dns_watch.healing import CONFIRMING_OBSERVATIONS, CONFIRMING_S, EMPTY_LIST_CONFIRMING_S
from lifecycle.dns_watch.schedule import SLOWEST_POLL_S, idle_interval_s
from lifecycle.dns_watch.state import HealState, LossKind, State
from lifecycle.dns_watch.status import Status
from lifecycle.domain.expiry import WARN_BEFORE
from lifecycle.prune.run import CONFIRMATION_DELAY_S
from lifecycle.runtime.retry import RETRIES_PER_BUDGET
from lifecycle.runtime.stop import GRACE_S
from lifecycle.settings.fields import parse_duration
from lifecycle.settings.models import DnsWatchSettings, InjectSettings, every_variable
from tests.fleet.fleet import BCRYPT_S
from tests.pages import PAGES, ROOT, anchors, blocks, links, prose, quoted, relative_path, rows, section

EVENT = re.compile(r"[a-z_]+\.[a-z_]+")

each_page = pytest.mark.parametrize("page", PAGES, ids=relative_path)

NOT_SETTINGS = {
    "BASE_IMAGE",
    "BUILDER",
    "BUILD_FLAGS",
    "CERTIFICATE_VERIFY_FAILED",
    "CHECK_INTERVAL",
    "CLUSTER_PODS",
    "CONTAINERD_ADDRESS",
    "CONTAINERD_SNAPSHOTTER",
    "GF_SECURITY_ADMIN_PASSWORD__FILE",
    "GF_SERVER_HTTP_ADDR",
    "GF_SERVER_ROOT_URL",
    "HEADSCALE_BINARIES",
    "IMAGE_ARCHIVE",
    "INGRESS_DOMAIN",
    "INGRESS_IMAGE",
    "IPA_SERVER_HOSTNAME",
    "KERBEROS_REALM",
    "KUBERNETES_BINARIES",
    "MALLOC_ARENA_MAX",
    "MALLOC_TRIM_THRESHOLD_",
    "NET_ADMIN",
    "NET_RAW",
    "NODE_NAME",
    "OFFLINE_MODE",
    "OLLAMA_BASE_URL",
    "OLLAMA_HOST",
    "OLLAMA_MODELS",
    "REDMINE_SECRET_KEY_BASE_FILE",
    "PYTHON",
    "SYS_ADMIN",
    "TAILSCALE_BINARIES",
    "TS_ACCEPT_DNS",
    "TS_AUDIENCE",
    "TS_AUTHKEY",
    "TS_AUTH_ONCE",
    "TS_CLIENT_ID",
    "TS_CLIENT_SECRET",
    "TS_ENABLE_HEALTH_CHECK",
    "TS_EXTRA_ARGS",
    "TS_HEALTHCHECK_ADDR_PORT",
    "TS_ID_TOKEN",
    "TS_STATE_DIR",
    "TS_USERSPACE",
    "TS_LOCAL_ADDR_PORT",
    "TS_USE_CACHED_NETMAP",
    "WEBUI_SECRET_KEY",
}
"""Names in the pages that look like settings, such as variables of other programs and Linux capabilities."""

CREATED_BY_THE_READER = re.compile(r"deploy/services/wiki\b|build/sources\.tar\.gz")
"""Paths that do not exist in the repository, because commands of a page create them."""


def test_pages_were_found() -> None:
    assert {"README.md", "SECURITY.md", "docs/operations.md"} <= {relative_path(page) for page in PAGES}


@each_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for path, anchor in links(page.read_text()):
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(f"{path}#{anchor}")
    assert broken == []


@each_page
def test_every_path_in_the_repository_exists(page: Path) -> None:
    paths = set(re.findall(r"(?<![\w./-])(?:deploy|docs|scripts|tests|build)/[\w./-]*\w", page.read_text()))
    missing = {path for path in paths if not (ROOT / path).exists()}
    assert {path for path in missing if not CREATED_BY_THE_READER.match(path)} == set()


@each_page
def test_every_variable_is_a_setting(page: Path) -> None:
    variables = set(re.findall(r"\b([A-Z]{2,}(?:_[A-Z0-9]+)+)\b", page.read_text()))
    assert variables - every_variable() - NOT_SETTINGS == set()


# --- Log events and messages --------------------------------------------------------------------------


@cache
def program_strings() -> tuple[str, ...]:
    """Return every string in the program's code. In f-strings, `…` stands for a value."""
    files = (ROOT / "lifecycle").rglob("*.py")
    return tuple(text for file in files for text in _strings(ast.parse(file.read_text())))


def _strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.JoinedStr(values=values):
                yield "".join(str(value.value) if isinstance(value, ast.Constant) else "…" for value in values)
            case ast.Constant(value=str(value)):
                yield value


@each_page
def test_every_event_is_logged_by_the_program(page: Path) -> None:
    logged = {text for text in program_strings() if EVENT.fullmatch(text)}
    nouns = {event.partition(".")[0] for event in logged}
    names = {text for text in re.findall(r"`([^`\n]+)`", prose(page.read_text())) if EVENT.fullmatch(text)}
    # Names of files, and of the values of the Helm chart (tables with the column "value"), look like events.
    others = {name for name in names if name.endswith(".py")}
    others |= {name for row in rows(page.read_text()) for name in quoted(row.get("value", ""))}
    assert {name for name in names - others if name.partition(".")[0] in nouns} <= logged


OPERATIONS = (ROOT / "docs/operations.md").read_text()
MESSAGES = sorted({text for row in rows(OPERATIONS) for text in quoted(row.get("message", ""))})


def test_operations_lists_messages() -> None:
    assert len(MESSAGES) > 25


@pytest.mark.parametrize("message", MESSAGES)
def test_message_in_operations_occurs_in_the_program(message: str) -> None:
    assert [text for text in program_strings() if message in text]


def test_secret_keeps_its_api_key_if_no_new_key_can_be_created() -> None:
    (block,) = [block.text for block in blocks(OPERATIONS, "sh") if "patch secret lifecycle" in block.text]
    kubectl = 'kubectl() { case "$*" in *" exec "*) return 1 ;; *) echo "$*" ;; esac; }'
    done = subprocess.run(["bash", "-c", f"{kubectl}\n{block}"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


# --- Values -------------------------------------------------------------------------------------------

LIMITS = {
    "Time after which `cleanup` makes no more retries of requests to Headscale": CLEANUP_RETRY_BUDGET,
    "Time after which `prune` makes no more retries of requests to Headscale": PRUNE_RETRY_BUDGET,
    "Largest number of retries of `cleanup` or `prune`": RETRIES_PER_BUDGET,
    "Time limit of a whole request to Headscale": HEADSCALE.timeout_factor,
    "Delay between the two observations of `prune`": timedelta(seconds=CONFIRMATION_DELAY_S),
    "Time between the first warning and the expiration of a key or a node": WARN_BEFORE,
    "Time over which a lost node is confirmed": timedelta(seconds=CONFIRMING_S),
    "Time over which a lost node is confirmed if Headscale has no nodes at all": timedelta(
        seconds=EMPTY_LIST_CONFIRMING_S
    ),
    "Polls that confirm a lost node": CONFIRMING_OBSERVATIONS,
    "Longest poll interval in a large fleet": timedelta(seconds=SLOWEST_POLL_S),
    "Time after SIGTERM or SIGINT at which a running command is aborted": f"{GRACE_S}s",
    "Largest response that is read": f"{MAX_RESPONSE_BYTES >> 20} MiB",
}


def test_documented_limits_are_those_of_the_program() -> None:
    table = {row["limit"]: quoted(row["value"])[0] for row in rows(section(OPERATIONS, "## Limits and timings"))}
    assert table.keys() == LIMITS.keys()
    for name, value in LIMITS.items():
        documented = parse_duration(table[name]) if isinstance(value, timedelta) else table[name]
        assert documented == (value if isinstance(value, timedelta) else str(value)), name


def test_operations_lists_the_states_of_nodez() -> None:
    """`/nodez` is an endpoint of dns-watch, which returns the state of its node."""
    # The state of an unregistered node is that of `State()`.
    lost = [State(heal=HealState(lost=kind)) for kind in LossKind if kind is not LossKind.NEVER_FOUND]
    states = [State(), State(is_registered=True), State(superseded_by="2"), *lost]
    documented = {state for row in rows(section(OPERATIONS, "## Self-healing")) for state in quoted(row["state"])}
    assert documented == {Status(timedelta(), timedelta(), state=state).node_state for state in states}


def test_documented_cores_for_headscale_follow_from_the_cost_of_a_request() -> None:
    """The CPU time of a request is that of the bcrypt check of the API key."""
    table = [row for row in rows(section((ROOT / "docs/scaling.md").read_text(), "## Headscale")) if "pods" in row]
    assert len(table) == 3
    config: Any = SimpleNamespace(poll_interval=DnsWatchSettings.model_fields["poll_interval"].default)
    for row in table:
        pods = int(row["pods"].replace(",", ""))
        interval = parse_duration(quoted(row["poll interval with default settings"])[0]).total_seconds()
        # The interval depends on the number of nodes only if the pod has a VPN interface.
        assert interval == idle_interval_s(State(fleet_size=pods, interface=(ip_address("100.64.0.1"),)), config)
        # Jitter lengthens the interval by up to a quarter, and by an eighth on average.
        cores = pods * BCRYPT_S / (interval * 1.125)
        assert float(row["cores"]) == round(cores, 1)


def test_pages_name_no_tailscale_image_but_the_default() -> None:
    default = InjectSettings.model_fields["tailscale_image"].default
    images = {
        image for page in PAGES for image in re.findall(r"(tailscale/tailscale:[\w.]+[\w.@:]*)", page.read_text())
    }
    assert images == {default.removeprefix("docker.io/")}


def test_readme_supports_the_headscale_releases_of_the_compatibility_page() -> None:
    tested = rows(section((ROOT / "docs/compatibility.md").read_text(), "## Headscale"))
    releases = [release for row in tested for release in re.findall(r"0\.\d+", row["Headscale"])]
    (supported,) = [row for row in rows((ROOT / "README.md").read_text()) if row.get("component") == "Headscale"]
    assert re.findall(r"0\.\d+", supported["supported"]) == [releases[0], releases[-1]]


def test_readme_lists_the_kubernetes_versions_of_the_compatibility_page() -> None:
    tested = rows(section((ROOT / "docs/compatibility.md").read_text(), "## Kubernetes"))
    versions = {version for row in tested for version in re.findall(r"1\.\d+\.\d+", row.get("Kubernetes", ""))}
    (supported,) = [row for row in rows((ROOT / "README.md").read_text()) if row.get("component") == "Kubernetes"]
    assert set(re.findall(r"1\.\d+\.\d+", supported["tested with real servers"])) == versions


# --- Architecture -------------------------------------------------------------------------------------


def test_documented_layers_are_those_of_the_import_contract() -> None:
    (diagram,) = [
        block.text
        for block in blocks((ROOT / "docs/architecture.md").read_text(), "")
        if block.text.startswith("cli\n")
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = [
        contract["layers"] for contract in project["tool"]["importlinter"]["contracts"] if contract["type"] == "layers"
    ]
    assert [set(line.split()) for line in diagram.splitlines()] == [
        {name.removeprefix("lifecycle.") for name in layer.split(" | ")} for layer in layers
    ]


def test_every_module_in_the_architecture_exists() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    paths = {path for path in re.findall(r"`([a-z_/{},]+(?:\.py|/))`", text) if not path.startswith(("docs", "tests"))}
    assert paths
    assert {path for path in paths if not (ROOT / "lifecycle" / path).exists()} == set()


# --- Decisions ----------------------------------------------------------------------------------------


def test_every_runtime_dependency_has_a_line_in_the_decisions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    dependencies = {re.split(r"[<>=;\[ ]", requirement)[0] for requirement in project["project"]["dependencies"]}
    table = rows(section((ROOT / "docs/decisions.md").read_text(), "## Dependencies"))
    assert dependencies <= {name for row in table for name in quoted(row["package"])}
