"""Tests of the dashboard, the alert rules and their manifests. A real Prometheus scrapes a real dns-watch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from lifecycle.keyfile.reader import KeyFileReader
from tests.builders import NAME
from tests.monitoring.test_rules import FOLDER, metrics_in
from tests.pod.rendering import of_kind, render
from tests.real.programs import BackgroundProcess, eventually, free_ports
from tests.simulators.cloudflare import CloudflareSimulator
from tests.simulators.headscale import HeadscaleSimulator
from tests.simulators.serve import serve
from tests.test_health import METRICS

PROMETHEUS = shutil.which("prometheus")

needs_prometheus = pytest.mark.skipif(PROMETHEUS is None, reason="needs prometheus: scripts/bootstrap --system")

# The values that Grafana would insert for the variables in the queries of the dashboard.
VARIABLES = {
    "$namespace": "apps",
    "$pod": "grafana-0",
    "$__rate_interval": "30s",
    "${datasource}": "",
}


class Prometheus:
    """A Prometheus server that scrapes one target every second and evaluates the rules.

    Args:
        folder: where the server writes its database and its log.
        target_port: the port of the target on loopback.
        rules: a rule file.
        stack: when the stack closes, the server stops.
    """

    def __init__(self, folder: Path, *, target_port: int, rules: Path, stack: ExitStack) -> None:
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rules)],
            "scrape_configs": [
                {
                    "job_name": "apps/tailscale-lifecycle",
                    "static_configs": [
                        {
                            "targets": [f"127.0.0.1:{target_port}"],
                            "labels": {"namespace": "apps", "pod": "grafana-0", "container": "dns-watch"},
                        }
                    ],
                }
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (port,) = free_ports(1)
        self._process = BackgroundProcess(
            [
                PROMETHEUS or "",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            log=folder / "prometheus.log",
            environment={"PATH": "/usr/bin", "GOMAXPROCS": "1"},
            folder=folder,
        )
        stack.callback(self._process.stop)
        self._client = stack.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30, trust_env=False)
        )
        eventually(self._is_running, "Prometheus", details=self._process.output)

    def _is_running(self) -> bool:
        assert self._process.exit_status is None, self._process.output()
        try:
            return self._client.get("/status/buildinfo").is_success
        except httpx.TransportError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        """Return the data of a successful response."""
        response = self._client.get(path, params=parameters)
        document = response.json()
        assert document["status"] == "success", document
        return document["data"]

    def query(self, query: str) -> list[Any]:
        """Return the current samples of a PromQL query."""
        samples: list[Any] = self.get("/query", query=query)["result"]
        return samples


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Prometheus]:
    """A Prometheus that has scraped a dns-watch whose record is published and whose node expires in an hour."""
    folder = tmp_path_factory.mktemp("prometheus")
    (manifest,) = yaml.safe_load_all((repository / FOLDER / "rules.yaml").read_text())
    rules = folder / "rules.yaml"
    rules.write_text(yaml.safe_dump(manifest["spec"]))
    with ExitStack() as stack:
        headscale, cloudflare = HeadscaleSimulator(), CloudflareSimulator()
        user = headscale.add_user("svc")
        key = headscale.create_key(user)
        node = headscale.add_node(NAME, user=user, pre_auth_key=key)
        headscale.expire_node(node.id, key.expires_at)
        zone_id = cloudflare.add_zone("example.com")
        # dns-watch identifies its node by the id of the pre-auth key. It reads the id from the file beside the key.
        metadata = KeyFileReader(folder / "authkey").metadata_path
        metadata.write_text(json.dumps({"pre_auth_key_id": str(key.id), "node_id": None}))
        (port,) = free_ports(1)
        watch = BackgroundProcess(
            [sys.executable, "-m", "lifecycle", "dns-watch"],
            log=folder / "dns-watch.log",
            environment={
                "PYTHONPATH": str(repository),
                "HEADSCALE_URL": stack.enter_context(serve(headscale)),
                "HEADSCALE_API_KEY": headscale.api_key,
                "CLOUDFLARE_API_URL": stack.enter_context(serve(cloudflare)) + "/client/v4",
                "CLOUDFLARE_API_TOKEN": cloudflare.token,
                "CLOUDFLARE_ZONE_ID": zone_id,
                "DOMAIN_NAME": "example.com",
                "HOSTNAME": "grafana-0",
                "AUTHKEY_OUTPUT_PATH": str(folder / "authkey"),
                "TAILSCALE_INTERFACE": "",
                "HEALTH_PORT": str(port),
                "HEALTH_ADDRESS": "127.0.0.1",
                "POLL_INTERVAL": "1s",
                "VERIFY_INTERVAL": "1s",
            },
            folder=folder,
        )
        stack.callback(watch.stop, signal.SIGTERM)
        eventually(
            lambda: [record.content for record in cloudflare.records(zone_id)] == [node.address],
            "the record",
            details=watch.output,
        )
        prometheus = Prometheus(folder, target_port=port, rules=rules, stack=stack)
        # rate() needs two scrapes, with requests to Headscale and Cloudflare between the scrapes.
        eventually(
            lambda: (
                prometheus.query('count(rate(tailscale_lifecycle_requests_total{outcome="ok"}[30s]) > 0) == 2') or None
            ),
            "two scrapes",
            details=lambda: watch.output() + str(prometheus.get("/targets")),
        )
        yield prometheus


def dashboard(repository: Path) -> Any:
    return json.loads((repository / FOLDER / "dashboard.json").read_text())


def queries(repository: Path) -> dict[str, str]:
    """Return the queries of the dashboard by "TITLE LETTER": the panel's title, and the letter of the query.

    The variables in the queries are replaced by VARIABLES.
    """
    by_title = {}
    for panel in dashboard(repository)["panels"]:
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            assert "$" not in query, f"VARIABLES has no value for a variable in {query}"
            by_title[f"{panel['title']} {target['refId']}"] = query
    return by_title


@needs_prometheus
def test_prometheus_scrapes_the_metrics_without_errors(prometheus: Prometheus) -> None:
    (target,) = prometheus.get("/targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


@needs_prometheus
def test_every_dashboard_query_returns_data(prometheus: Prometheus, repository: Path) -> None:
    """A query with a misspelt metric or label would return no data."""
    empty = {title for title, query in queries(repository).items() if not prometheus.query(query)}
    assert empty == set()


@needs_prometheus
def test_dashboard_values_match_the_pod_state(prometheus: Prometheus, repository: Path) -> None:
    samples = {title: prometheus.query(query) for title, query in queries(repository).items()}

    def value(title: str) -> float:
        (sample,) = samples[f"{title} A"]
        return float(sample["value"][1])

    assert value("Pods with dns-watch") == value("Registered nodes") == value("Records in sync") == 1
    assert value("Lost nodes") == value("Superseded") == 0
    # The API keys of the simulator expire after 90 days.
    assert value("API key expiry") == pytest.approx(90 * 86_400, abs=600)
    assert 0 < value("Pass duration") < 10
    assert {(sample["metric"]["upstream"], sample["metric"]["outcome"]) for sample in samples["Requests A"]} == {
        ("Headscale", "ok"),
        ("Cloudflare", "ok"),
    }
    (versions,) = samples["Versions A"]
    assert versions["metric"]["headscale"] == "0.28.0"


@needs_prometheus
def test_only_the_alert_for_the_expiring_node_fires(prometheus: Prometheus) -> None:
    def evaluated_rules() -> list[Any] | None:
        rules = [rule for group in prometheus.get("/rules")["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    rules = eventually(evaluated_rules, "the rules to be evaluated")
    assert rules
    assert {(rule["health"], rule.get("lastError")) for rule in rules} == {("ok", None)}
    (firing,) = [rule for rule in rules if rule["state"] != "inactive"]
    assert firing["name"] == "TailscaleLifecycleNodeExpiring"
    (alert,) = firing["alerts"]
    assert "apps/grafana-0" in alert["annotations"]["summary"]


@needs_prometheus
def test_dashboard_variables_offer_the_namespace_and_the_pod(prometheus: Prometheus, repository: Path) -> None:
    for variable in dashboard(repository)["templating"]["list"]:
        if variable["type"] != "query":
            continue
        # For example "label_values(metric{namespace="$namespace"}, pod)".
        selector, _, label = variable["definition"].removeprefix("label_values(").removesuffix(")").rpartition(", ")
        values = prometheus.get(f"/label/{label}/values", **{"match[]": selector.replace("$namespace", "apps")})
        assert values == [VARIABLES[f"${variable['name']}"]]


def test_dashboard_uses_existing_metrics_and_one_data_source(repository: Path) -> None:
    document = dashboard(repository)
    assert document["uid"] == "tailscale-lifecycle"
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    for panel in document["panels"]:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
    for query in queries(repository).values():
        assert metrics_in(query) <= set(METRICS)


def test_scraped_port_matches_the_container_port(repository: Path) -> None:
    """A PodMonitor refers to a port by its name, and the annotations by its number."""
    manifest = yaml.safe_load((repository / "deploy/components/lifecycle/plain/lifecycle.yaml").read_text())
    (dns_watch,) = (
        container
        for container in manifest["spec"]["template"]["spec"]["containers"]
        if container["name"] == "dns-watch"
    )
    (port,) = dns_watch["ports"]
    monitor = yaml.safe_load((repository / FOLDER / "podmonitor.yaml").read_text())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["relabelings"][0]["regex"]) == (port["name"], dns_watch["name"])
    pod = yaml.safe_load((repository / FOLDER / "annotations/pod.yaml").read_text())
    annotations = pod["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])


def test_annotations_component_annotates_the_pod(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("overlay")
    deploy = os.path.relpath((repository / "deploy").resolve(), folder.resolve())
    overlay = {"resources": [f"{deploy}/services/ollama"], "components": [f"{deploy}/monitoring/annotations"]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    (stateful_set,) = of_kind(render(folder), "StatefulSet")
    assert stateful_set["spec"]["template"]["metadata"]["annotations"]["prometheus.io/scrape"] == "true"
