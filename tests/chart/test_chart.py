"""Test which objects Helm renders from the chart's values, and which values it refuses."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import tarfile
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.chart.helm import CHART, SITE, Document, Values, expect_refusal, run, template
from tests.pages import PAGES, blocks, relative_path
from tests.pod.rendering import NEWEST_KUBERNETES, of_kind

SUBJECT = {"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:serviceaccounts:services"}
CONTAINER_OPTIONS = {
    "extraEnv": [{"name": "CONTAINERD_SNAPSHOTTER", "value": "native"}],
    "extraVolumeMounts": [{"name": "proxy", "mountPath": "/settings"}],
    "resources": {"limits": {"memory": "2Gi"}},
}
ALL_OPTIONS: Values = {
    "settings": {**SITE, "MAX_RETRIES": 1234567, "DNS_IPV6": True, "AUTHKEY_TAGS": ""},
    "build": {
        **CONTAINER_OPTIONS,
        "import": {**CONTAINER_OPTIONS, "checkInterval": 60},
        "extraVolumes": [{"name": "proxy", "configMap": {"name": "proxy"}}],
        "imagePullSecrets": [{"name": "registry"}],
        "priorityClassName": "system-node-critical",
        "maxUnavailable": 2,
        "tolerations": [],
    },
    "prune": {
        "enabled": True,
        "namespaces": ["media", "services"],
        "settings": {"PRUNE_MAX": 3},
        "serviceAccountName": "prune",
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"operator": "Exists"}],
        "imagePullSecrets": [{"name": "registry"}],
    },
    "rbac": {
        "apiKeySecret": {"enabled": True, "subjects": [SUBJECT]},
        "exec": {"enabled": True, "subjects": [SUBJECT]},
        "keep": [
            {"name": f"keep-{name}", "namespace": "services", "secret": name, "serviceAccountName": name}
            for name in ("grafana", "wiki")
        ],
        "events": [{"namespace": "services", "subjects": [SUBJECT]}],
    },
    "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    "dashboard": {"enabled": True, "namespace": "grafana"},
    "networkPolicy": {"enabled": True},
}
"""Values that enable every part of the chart, with a value for nearly every option."""
WITHOUT_SCHEMA = {"PodMonitor", "PrometheusRule", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding"}
"""Kinds for which kubernetes-validate has no schema: custom resources, and kinds that are newer than its schemas."""


@pytest.fixture(scope="module")
def all_objects(chart: Path) -> list[Document]:
    """The objects that Helm renders from ALL_OPTIONS."""
    return template(chart, ALL_OPTIONS, "--namespace=system")


def by_name(documents: list[Document], kind: str, namespace: str) -> dict[str, Document]:
    """Return the objects of a kind in a namespace, by name."""
    return {
        document["metadata"]["name"]: document
        for document in of_kind(documents, kind)
        if document["metadata"]["namespace"] == namespace
    }


def validate(documents: list[Document]) -> None:
    """Assert that Kubernetes accepts the objects."""
    for document in documents:
        if document["kind"] not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(document, NEWEST_KUBERNETES, strict=True)


def test_names_that_yaml_reads_as_numbers_are_text(chart: Path) -> None:
    text = json.dumps(ALL_OPTIONS)
    for number, name in enumerate(("services", "media", "grafana", "wiki", "system-node-critical")):
        text = text.replace(f'"{name}"', f'"{number}"')
    documents = template(chart, json.loads(text), "--namespace=5")
    validate(documents)
    assert {type(document["metadata"].get("namespace", "")) for document in documents} == {str}


def test_all_objects_are_valid_and_have_unique_names(all_objects: list[Document]) -> None:
    validate(all_objects)
    names = [
        (document["kind"], document["metadata"].get("namespace"), document["metadata"]["name"])
        for document in all_objects
    ]
    assert len(names) == len(set(names))


def test_every_object_has_the_recommended_labels(all_objects: list[Document]) -> None:
    for document in all_objects:
        labels = document["metadata"]["labels"]
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["app.kubernetes.io/instance"] == "tailscale-lifecycle"
        assert labels["app.kubernetes.io/name"]
        assert re.fullmatch(r"tailscale-lifecycle-\d+\.\d+\.\d+", labels["helm.sh/chart"])


def test_config_map_has_settings_as_text_and_omits_empty_settings(all_objects: list[Document]) -> None:
    settings = by_name(all_objects, "ConfigMap", "system")["tailscale-lifecycle"]["data"]
    assert settings["MAX_RETRIES"] == "1234567"
    assert settings["DNS_IPV6"] == "true"
    assert "AUTHKEY_TAGS" not in settings


def test_each_namespace_has_its_own_prune_job(all_objects: list[Document]) -> None:
    for namespace in ("media", "services"):
        data = by_name(all_objects, "ConfigMap", namespace)["lifecycle-prune"]["data"]
        assert (data["DNS_OWNER"], data["PRUNE_MAX"], data["PRUNE_AFTER"]) == (namespace, "3", "7d")
        assert "LOGIN_SERVER" not in data
        job = by_name(all_objects, "CronJob", namespace)["lifecycle-prune"]
        pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("prune", True)


@pytest.mark.parametrize(
    ("of_site", "of_prune", "owner"),
    [("west", None, "west"), ("west", "east", "east"), ("west", "", "west"), ("", "", "services")],
)
def test_configured_dns_owner_applies_to_every_prune_job(
    of_site: str, of_prune: str | None, owner: str, chart: Path
) -> None:
    prune = {"enabled": True, "namespaces": ["services"]}
    prune |= {} if of_prune is None else {"settings": {"DNS_OWNER": of_prune}}
    documents = template(chart, {"settings": {**SITE, "DNS_OWNER": of_site}, "prune": prune})
    assert by_name(documents, "ConfigMap", "services")["lifecycle-prune"]["data"]["DNS_OWNER"] == owner


@pytest.mark.parametrize(
    ("settings", "has_file"),
    [({}, True), ({"HEADSCALE_API_KEY_SECRET": "headscale-api-key"}, False), ({"HEADSCALE_ACCESS": "exec"}, False)],
    ids=["default", "Secret", "exec"],
)
def test_prune_gets_a_file_with_the_api_key_unless_it_uses_the_kubernetes_api(
    settings: dict[str, str], has_file: bool, chart: Path
) -> None:
    prune = {"enabled": True, "namespaces": ["services"], "serviceAccountName": "prune"}
    documents = template(chart, {"settings": {**SITE, **settings}, "prune": prune})
    data = by_name(documents, "ConfigMap", "services")["lifecycle-prune"]["data"]
    assert ("HEADSCALE_API_KEY_FILE" in data) is has_file


@pytest.mark.parametrize("name", ["CLOUDFLARE_API_TOKEN_FILE", "HEADSCALE_API_KEY_FILE"])
def test_prune_reads_credentials_from_the_files_in_the_settings(name: str, chart: Path) -> None:
    prune = {"enabled": True, "namespaces": ["services"]}
    documents = template(chart, {"settings": {**SITE, name: "/run/secrets/lifecycle/own"}, "prune": prune})
    assert by_name(documents, "ConfigMap", "services")["lifecycle-prune"]["data"][name] == "/run/secrets/lifecycle/own"


def test_network_policies_deny_ingress_to_all_pods_of_the_chart(all_objects: list[Document]) -> None:
    selected = {
        (policy["metadata"]["namespace"], policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/name"])
        for policy in of_kind(all_objects, "NetworkPolicy")
    }
    pods = {
        (
            document["metadata"]["namespace"],
            document["spec"].get("jobTemplate", document)["spec"]["template"]["metadata"]["labels"][
                "app.kubernetes.io/name"
            ],
        )
        for document in of_kind(all_objects, "DaemonSet", "CronJob")
    }
    assert selected == pods
    for policy in of_kind(all_objects, "NetworkPolicy"):
        assert policy["spec"]["policyTypes"] == ["Ingress"]
        assert "ingress" not in policy["spec"]


def test_all_containers_use_the_configured_images(chart: Path) -> None:
    image = {"repository": "registry.example.com/lifecycle", "digest": f"sha256:{'0' * 64}"}
    documents = template(
        chart,
        {
            "settings": SITE,
            "build": {"enabled": False},
            "image": image,
            "prune": {"enabled": True, "namespaces": ["services"]},
            "tailscale": {"image": {"repository": "registry.example.com/tailscale"}},
        },
    )
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    text = yaml.safe_dump_all(documents, width=10_000)
    # In the MutatingAdmissionPolicy and in the CronJob.
    assert text.count(f"{image['repository']}:{version}@{image['digest']}") == 2
    assert "registry.example.com/tailscale:v" in text
    assert "localhost/" not in text
    assert "docker.io/" not in text


def test_settings_of_injection_are_in_the_namespace_of_the_release(chart: Path) -> None:
    documents = template(chart, {"settings": SITE, "build": {"enabled": False}}, "--namespace=system")
    bindings = of_kind(documents, "MutatingAdmissionPolicyBinding", "ValidatingAdmissionPolicyBinding")
    assert [binding["spec"]["paramRef"]["namespace"] for binding in bindings] == ["system", "system"]
    assert by_name(documents, "ConfigMap", "system").keys() == {"tailscale-lifecycle"}
    # "tailscale-lifecycle-inject" is the namespace of the Kustomize folder deploy/inject.
    assert "tailscale-lifecycle-inject" not in json.dumps(documents)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        pytest.param({}, "settings.DOMAIN_NAME", id="no domain"),
        pytest.param({"settings": {"DOMAIN_NAME": "example.com"}}, "settings.LOGIN_SERVER", id="no login server"),
        pytest.param(
            {"settings": {**SITE, "DOMAIN_NAME": "example"}}, "settings.DOMAIN_NAME", id="domain with one label"
        ),
        pytest.param(
            {"settings": {**SITE, "LOGIN_SERVER": "http://headscale.example.com"}},
            "settings.LOGIN_SERVER",
            id="login server with http and a host name",
        ),
        pytest.param(
            {"settings": {**SITE, "LOGIN_SERVER": "https://user:password@headscale.example.com"}},
            "settings.LOGIN_SERVER",
            id="login server with a password",
        ),
        pytest.param(
            {"settings": SITE, "image": {"tag": "1"}}, "build.enabled", id="custom image although build is enabled"
        ),
        pytest.param(
            {"inject": {"enabled": False}, "prune": {"enabled": True, "namespaces": ["services"]}},
            "settings.DOMAIN_NAME",
            id="prune without domain",
        ),
        pytest.param(
            {
                "settings": {**SITE, "HEADSCALE_ACCESS": "exec"},
                "prune": {"enabled": True, "namespaces": ["services"]},
            },
            "prune.serviceAccountName",
            id="exec without service account",
        ),
    ],
)
def test_error_names_the_invalid_value(chart: Path, values: Values, name: str) -> None:
    assert name in expect_refusal(chart, values)


def test_error_about_missing_sources_names_the_command_that_creates_them(tmp_path: Path) -> None:
    copy = tmp_path / CHART.name
    shutil.copytree(CHART, copy, ignore=shutil.ignore_patterns("sources.tar.gz"))
    assert "scripts/image --sources" in expect_refusal(copy, {"settings": SITE})
    assert template(copy, {"settings": SITE, "build": {"enabled": False}})


def test_injection_is_refused_without_mutating_admission_policies(chart: Path) -> None:
    assert "inject.enabled" in expect_refusal(chart, {"settings": SITE}, "--kube-version=1.33.0")
    assert template(chart, {"inject": {"enabled": False}}, "--kube-version=1.25.0")


def test_changed_import_script_changes_the_name_of_its_config_map(chart: Path, tmp_path: Path) -> None:
    changed = tmp_path / CHART.name
    shutil.copytree(chart, changed)
    with (changed / "files/import.sh").open("a") as script:
        script.write("# changed\n")
    values = {"inject": {"enabled": False}}
    before, after = (of_kind(template(folder, values), "ConfigMap") for folder in (chart, changed))
    assert before[0]["metadata"]["name"] != after[0]["metadata"]["name"]


@pytest.mark.parametrize("values", [{}, ALL_OPTIONS], ids=["defaults", "all options"])
def test_helm_lint_reports_no_warnings(chart: Path, values: Values) -> None:
    done = run("lint", "--strict", chart, "--values=-", text=json.dumps(values))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout + done.stderr


def test_package_contains_the_sources_and_the_schema(chart: Path, tmp_path: Path) -> None:
    done = run("package", chart, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tgz")
    with tarfile.open(archive) as package:
        members = package.getnames()
    assert f"{CHART.name}/values.schema.json" in members
    assert f"{CHART.name}/files/sources.tar.gz" in members
    assert template(archive, {"settings": SITE}) == template(chart, {"settings": SITE})


PAGE_COMMANDS = sorted(
    {
        (relative_path(page), command.partition(" | ")[0])
        for page in PAGES
        for block in blocks(page.read_text().replace("\\\n", " "), "sh")
        for command in re.findall(r"^helm .*", block.text, flags=re.MULTILINE)
    }
)


@pytest.mark.parametrize(("page", "command"), PAGE_COMMANDS)
def test_helm_accepts_the_commands_in_the_documentation(page: str, command: str) -> None:
    # With --help, Helm only parses the flags.
    done = run(*shlex.split(command)[1:], "--help")
    assert done.returncode == 0, f"{page}: {done.stderr}"
