"""The alert rules: promtool finds them right, and each fires for what it is about and for nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.test_health import METRICS

PROMTOOL = shutil.which("promtool")
FOLDER = Path("deploy/monitoring")
CASES = Path(__file__).parent / "alerts.yaml"

needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool: scripts/bootstrap --system")


@pytest.fixture
def groups(repository: Path) -> list[Any]:
    """The groups of rules."""
    (rule,) = yaml.safe_load_all((repository / FOLDER / "rules.yaml").read_text())
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    found: list[Any] = rule["spec"]["groups"]
    return found


@pytest.fixture
def alerts(groups: list[Any]) -> dict[str, Any]:
    """Every alert by its name."""
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


@pytest.fixture
def cases() -> Any:
    return yaml.safe_load(CASES.read_text())


@pytest.fixture
def rule_file(groups: list[Any], tmp_path: Path) -> Path:
    """The rules as Prometheus reads them, without what is the operator's."""
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": groups}))
    return path


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROMTOOL or "", *arguments], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False
    )


@needs_promtool
def test_rules_are_right(rule_file: Path) -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", rule_file)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_alerts_fire(rule_file: Path, alerts: dict[str, Any], cases: Any) -> None:
    for case in cases["tests"]:
        for look in case["alert_rule_test"]:
            for expected in look.get("exp_alerts", []):
                assert expected["exp_labels"]["severity"] == alerts[look["alertname"]]["labels"]["severity"]
    path = rule_file.with_name(CASES.name)
    # promtool compares annotations too; what they say is for a person to judge.
    plain = yaml.safe_load(rule_file.read_text())
    for group in plain["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]
    rule_file.write_text(yaml.safe_dump(plain))
    # As it stands: "0x10" is ten steps there, and sixteen to Python.
    shutil.copy(CASES, path)
    done = promtool("test", "rules", path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested(alerts: dict[str, Any], cases: Any) -> None:
    """Each one fires in one case and stays quiet in another."""
    looks = [look for case in cases["tests"] for look in case["alert_rule_test"]]
    assert {look["alertname"] for look in looks if look.get("exp_alerts")} == set(alerts)
    assert {look["alertname"] for look in looks if not look.get("exp_alerts")} == set(alerts)


def test_every_alert_says_what_to_do(alerts: dict[str, Any]) -> None:
    for alert in alerts.values():
        assert alert["annotations"].keys() == {"summary", "description"}
        assert alert["labels"]["severity"] in {"warning", "critical"}


def metrics_in(query: str) -> set[str]:
    """Our metrics that a query names, as they are called in METRICS."""
    found = set(re.findall(r"tailscale_lifecycle_(\w+)", query))
    return {re.sub(r"(_seconds)?(_total|_info|_count|_sum)$", r"\1", name) for name in found}


def test_metrics_exist(alerts: dict[str, Any]) -> None:
    for alert in alerts.values():
        assert metrics_in(alert["expr"])
        assert metrics_in(alert["expr"]) <= set(METRICS)
