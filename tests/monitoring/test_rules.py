"""Test that promtool accepts the alert rules, that each alert fires when it should, and that its runbook exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pages import anchors
from tests.test_health import METRICS

PROMTOOL = shutil.which("promtool")
FOLDER = Path("deploy/monitoring")
# The tests that promtool runs.
PROMTOOL_TESTS = Path(__file__).parent / "alerts.yaml"

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool: scripts/bootstrap --system")


@pytest.fixture
def groups(repository: Path) -> list[Any]:
    """The groups of the PrometheusRule."""
    (rule,) = yaml.safe_load_all((repository / FOLDER / "rules.yaml").read_text())
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    groups: list[Any] = rule["spec"]["groups"]
    return groups


@pytest.fixture
def alerts(groups: list[Any]) -> dict[str, Any]:
    """The alert rules by the name of the alert."""
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@pytest.fixture
def promtool_tests() -> Any:
    return yaml.safe_load(PROMTOOL_TESTS.read_text())


@pytest.fixture
def rule_file(groups: list[Any], tmp_path: Path) -> Path:
    """The rules as a rule file of Prometheus, without the Kubernetes resource around them."""
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": groups}))
    return path


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROMTOOL or "", *arguments], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False
    )


@needs_promtool
def test_promtool_accepts_the_rules(rule_file: Path) -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", rule_file)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.full
@needs_promtool
def test_alerts_fire_as_expected(rule_file: Path) -> None:
    path = rule_file.with_name(PROMTOOL_TESTS.name)
    # promtool would compare annotations, too. Without them, a new wording does not fail the test.
    without_annotations = yaml.safe_load(rule_file.read_text())
    for group in without_annotations["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]
    rule_file.write_text(yaml.safe_dump(without_annotations))
    # The file is copied as text, because a YAML parser reads promtool's "0x10" as sixteen.
    shutil.copy(PROMTOOL_TESTS, path)
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_to_fire_and_not_to_fire(alerts: dict[str, Any], promtool_tests: Any) -> None:
    checks = [check for test in promtool_tests["tests"] for check in test["alert_rule_test"]]
    assert {check["alertname"] for check in checks if check.get("exp_alerts")} == set(alerts)
    assert {check["alertname"] for check in checks if not check.get("exp_alerts")} == set(alerts)


def test_every_alert_has_a_severity_and_annotations(alerts: dict[str, Any]) -> None:
    for alert in alerts.values():
        assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert alert["labels"]["severity"] in {"warning", "critical"}


def test_every_runbook_url_is_a_section_of_the_documentation(alerts: dict[str, Any], repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    sections = anchors((repository / "docs/operations.md").read_text())
    expected = {f"{project['urls']['Documentation']}/operations.md#{section}" for section in sections}
    assert {alert["annotations"]["runbook_url"] for alert in alerts.values()} <= expected


def metrics_in(query: str) -> set[str]:
    """Return the names of the metrics that a PromQL query uses, without prefix and suffix, as in METRICS."""
    names = re.findall(r"tailscale_lifecycle_(\w+)", query)
    return {re.sub(r"(_total|_info|_count|_sum)$", "", name) for name in names}


def test_alerts_use_existing_metrics(alerts: dict[str, Any]) -> None:
    for alert in alerts.values():
        metrics = metrics_in(alert["expr"])
        assert metrics
        assert metrics <= set(METRICS)
