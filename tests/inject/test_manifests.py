"""Test how `lifecycle inject` reads and writes manifests. Text outside of the changed workloads stays as it is."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.domain.errors import ManifestError
from lifecycle.inject.manifests import inject
from lifecycle.inject.rules import HOSTNAME, LABEL
from lifecycle.inject.template import CONTAINERS
from tests.inject.labelled_workloads import annotated, deployment, pod, stateful_set, template_of, with_pod_fields
from tests.inject.samples import INJECT_SETTINGS, NAMES, SETTINGS, Document, inject_text, injected, workloads
from tests.pod.rendering import parse

WORKLOADS_TEXT = Path(__file__).with_name("workloads.yaml").read_text()

# Documents without a workload that has the label.
UNLABELLED = """\
# A comment
kind:   ConfigMap   # and another
data: {a: yes,  b: 0o14,
  c: 1e3}
---
# Source: chart/templates/empty.yaml
---
apiVersion: v1
kind: Service
metadata:
    name: "x"
"""

# A Deployment with the label.
LABELLED = f"""\
---
# Source: chart/templates/deployment.yaml
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 1
  template:
    metadata:
      labels: {{app: web, {LABEL}: "true"}}
      annotations: {{{HOSTNAME}: web}}
    spec:
      containers:
      - name: web
        image: docker.io/library/web:1
"""


def test_text_without_labelled_workloads_is_returned_unchanged() -> None:
    assert inject_text(UNLABELLED) == UNLABELLED


def test_other_documents_keep_every_byte() -> None:
    changed = inject_text(UNLABELLED + LABELLED + "---\n" + UNLABELLED)
    assert changed.startswith(UNLABELLED + "---\n# Source: chart/templates/deployment.yaml\n")
    assert changed.endswith("---\n" + UNLABELLED)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        *((value, value) for value in ("0o14", "1e3", "-.5e3", "y", "N", "web", "'1e3'", "'y'")),
        ("yes", "true"),
        ("012", "10"),
        ("~", "null"),
        ('"it\'s"', "it's"),
        *((value, f"'{value}'") for value in ("2026-01-01", "12:30:45", "=")),
    ],
)
def test_values_keep_the_type_that_kubernetes_reads(value: str, written: str) -> None:
    changed = inject_text(f"{LABELLED}        env: [{{name: A, value: {value}}}]\n")
    assert f"        - name: A\n          value: {written}\n" in changed


def test_text_of_several_lines_stays_readable() -> None:
    lines = "        - |\n          set -e\n          exec web\n"
    assert lines in inject_text(f"{LABELLED}        args:\n{lines}")


@cache
def injected_workloads() -> dict[str, Document]:
    """Return the workloads of workloads.yaml with the containers, by name."""
    return {document["metadata"]["name"]: document for document in parse(inject_text(WORKLOADS_TEXT))}


@pytest.mark.parametrize("name", NAMES)
def test_yaml_and_json_have_the_same_result(name: str) -> None:
    assert injected_workloads()[name] == injected(workloads()[name])


@pytest.mark.parametrize("name", NAMES)
def test_only_containers_and_volumes_are_added(name: str) -> None:
    before, after = workloads()[name], injected(workloads()[name])
    spec, old_spec = template_of(after)["spec"], template_of(before)["spec"]
    for group, is_ours in (
        ("initContainers", lambda item: item["name"] in CONTAINERS),
        ("volumes", lambda item: item["name"].startswith("tailscale-lifecycle-")),
    ):
        spec[group] = [item for item in spec[group] if not is_ours(item)]
        if not spec[group] and group not in old_spec:
            del spec[group]
    assert after == before


def test_second_run_changes_nothing() -> None:
    once = inject_text(WORKLOADS_TEXT)
    assert inject_text(once) == once


def test_workloads_in_a_list_are_changed() -> None:
    document = {"apiVersion": "v1", "kind": "List", "items": [deployment(), {"kind": "Secret"}, pod()]}
    first, secret, second = json.loads(inject_text(json.dumps(document)))["items"]
    assert (first, secret, second) == (injected(deployment()), {"kind": "Secret"}, injected(pod()))


def test_aliases_and_merge_keys_are_resolved() -> None:
    text = f"""\
base: &labels {{app: web, {LABEL}: "true"}}
kind: Deployment
metadata: {{name: web}}
spec:
  template:
    metadata:
      labels: {{<<: *labels, tier: one}}
      annotations: {{{HOSTNAME}: web}}
    spec:
      containers: &containers [{{name: web, image: x}}]
      initContainers: &init
      - {{name: own, image: x}}
  copied_containers: *containers
  copied_init: *init
"""
    changed = yaml.safe_load(inject_text(text))
    template = changed["spec"]["template"]
    assert template["metadata"]["labels"] == {"app": "web", LABEL: "true", "tier": "one"}
    assert [container["name"] for container in template["spec"]["initContainers"]] == [*CONTAINERS, "own"]
    assert changed["spec"]["copied_init"] == [{"name": "own", "image": "x"}]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"kind: X\n{LABEL}: [", "line"),
        (f"- {LABEL}", "not an object"),
        (f"&a {{kind: List, items: [*a], {LABEL}: x}}", "alias"),
        (f"x: &a {{<<: *a, {LABEL}: x}}", "alias"),
        (LABELLED.replace("replicas: 1", "replicas: 1\n  replicas: 1"), "replicas twice"),
        (f'{{"kind": "Pod", "kind": "{LABEL}"}}', "kind twice"),
        (f"{'[' * 100_000}{LABEL}", "too deeply"),
        ('{"a":' * 100_000 + LABEL, "too deeply"),
        (f"kind: X\nspec: !!python/object:os.system {{{LABEL}: x}}", "tag"),
        (LABELLED.replace("kind: Deployment", "kind: Rollout"), "Rollout web"),
        (LABELLED.replace("labels: {app: web,", "labels: {? [a] : web,"), "key"),
        (LABELLED.replace('"true"', "true"), "in quotes"),
        (
            LABELLED.replace("      - name: web\n        image: docker.io/library/web:1\n", "        name: web\n"),
            "containers",
        ),
        (LABELLED.partition("      containers:")[0] + "      nodeName: x\n", "no containers"),
        (LABELLED.replace(f"annotations: {{{HOSTNAME}: web}}", f"annotations: [{HOSTNAME}]"), "annotations"),
    ],
    ids=[
        *("incomplete", "list", "recursive alias", "recursive merge key", "field twice", "JSON field twice"),
        *("nested lists", "nested JSON objects"),
        *("Python object", "unknown kind"),
        *("list as a key", "boolean label", "containers as an object", "no containers"),
        "annotations as a list",
    ],
)
def test_malformed_text_is_reported(text: str, expected: str) -> None:
    with pytest.raises(ManifestError, match=expected):
        inject_text(text)


def test_aliases_that_multiply_are_refused() -> None:
    """Nine aliases of nine aliases, and so on, would need too much memory."""
    for first, before, after in (f"[{LABEL}]", "[", "]"), (f"{{{LABEL}: x}}", "{<<: [", "]}"):
        lines = [f"a0: &a0 {first}"]
        lines += [f"a{n}: &a{n} {before}{', '.join([f'*a{n - 1}'] * 9)}{after}" for n in range(1, 30)]
        with pytest.raises(ManifestError, match="aliases"):
            inject_text("\n".join(lines))


@pytest.mark.parametrize(
    "text",
    [
        LABELLED.replace("Deployment", "PodTemplate").replace("spec:\n  replicas: 1\n  template:", "template:\n  x:"),
        LABELLED.replace("apps/v1", "apps.example.com/v1"),
        LABELLED.replace("apiVersion: apps/v1", "apiVersion: [apps/v1]"),
        LABELLED.replace("apiVersion: apps/v1", "apiVersion: {apps: v1}"),
        LABELLED.replace("replicas: 1", "replicas: 3.0"),
        LABELLED.replace("replicas: 1", "replicas: '3'"),
        LABELLED.replace("name: web\n        image", "name: [a]\n        image"),
        LABELLED.replace("kind: Deployment", "kind: Other").replace("labels: {", "labels: 5\n      other: {"),
    ],
    ids=[
        *("other kind", "other API group", "list as a version", "object as a version"),
        *("float", "text", "list as a name", "number as labels"),
    ],
)
def test_workload_with_unexpected_values_is_refused_or_unchanged(text: str) -> None:
    try:
        assert inject_text(text) == text
        # Only this text has no workload with the label.
        assert "labels: 5" in text
    except ManifestError as error:
        assert "web" in str(error)  # noqa: PT017 - both outcomes are valid


def test_null_annotations_count_as_empty() -> None:
    document = annotated(deployment(), tailscale_args="")
    expected = injected(document)
    text = json.dumps(document).replace(
        '"tailscale-lifecycle/tailscale-args": ""', '"tailscale-lifecycle/tailscale-args": null'
    )
    changed = json.loads(inject_text(text))
    assert template_of(changed)["spec"] == template_of(expected)["spec"]


def test_text_that_kubernetes_would_read_as_another_type_has_quotes() -> None:
    values = ["y", "N", "1e3", "0o14", "-.5", "on", "~", "null"]
    shared = {f"A{number}": value for number, value in enumerate(values)}
    for text in (LABELLED, json.dumps(deployment()), yaml.safe_dump(deployment(), default_flow_style=True)):
        changed = inject_text(text, shared)
        for value in values:
            assert re.search(rf"""value"?: ['"]{re.escape(value)}['"]""", changed), value


@pytest.mark.parametrize("value", ["\U0001f600", "\U000f0000 \u00ad\x7f\u2028"], ids=ascii)
def test_text_of_any_characters_is_read_back(value: str) -> None:
    """YAML has no surrogate pairs, which are JSON's escapes for characters above U+FFFF."""
    shared = {"HEADSCALE_USER": value}
    for text, load in ((LABELLED, yaml.safe_load), (json.dumps(deployment()), json.loads)):
        containers = template_of(load(inject_text(text, shared)))["spec"]["initContainers"]
        assert {"name": "HEADSCALE_USER", "value": value} in containers[0]["env"]


def test_line_endings_of_windows() -> None:
    assert inject_text(LABELLED.replace("\n", "\r\n")).splitlines() == inject_text(LABELLED).splitlines()


def test_thousands_of_blank_lines_are_read_quickly() -> None:
    """A regular expression with exponential backtracking would not end."""
    text = "\n" * 5000 + LABELLED
    assert inject_text(text).startswith("\n" * 5000 + "---\n")


def test_files_are_read_one_by_one() -> None:
    texts = ['{"kind": "ConfigMap", "data": {"a": "\\ud83d\\ude00"}}', "---\nkind: Secret", "kind: Service\n"]
    assert inject(texts, INJECT_SETTINGS, SETTINGS) == f"{texts[0]}\n{texts[1]}\n---\n{texts[2]}"


# --- Properties ---------------------------------------------------------------------------------------

_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20)
)
_NAMES = st.text(min_size=1, max_size=10)
_VALUES = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3), max_leaves=10
)


@st.composite
def manifests(draw: st.DrawFn) -> Document:
    """Return a labelled workload with arbitrary additional fields."""
    document = draw(st.sampled_from([deployment(), stateful_set()]))
    document = deepcopy(document)
    template = template_of(document)
    status: dict[str, Any] = draw(st.dictionaries(_NAMES, _VALUES, max_size=3))
    document["metadata"]["annotations"] = draw(st.dictionaries(_NAMES, st.text(max_size=20), max_size=2))
    document["status"] = status
    template["spec"]["containers"][0]["args"] = draw(st.lists(st.text(max_size=30), max_size=3))
    template["spec"]["x-extra"] = draw(_VALUES)
    if draw(st.booleans()):
        template["spec"]["volumes"] = draw(st.sampled_from([[], [{"name": "data", "emptyDir": {}}]]))
    if draw(st.booleans()):
        template["spec"]["initContainers"] = draw(st.sampled_from([[], [{"name": "own", "image": "x"}]]))
    return document


@given(manifests(), st.sampled_from(["block", "flow", "json"]))
def test_arbitrary_workload_is_changed_once_and_keeps_its_fields(document: Document, style: str) -> None:
    if style == "json":
        text = json.dumps(document)
    else:
        text = yaml.safe_dump(document, default_flow_style=style == "flow", allow_unicode=True)
    once = inject_text(text)
    assert inject_text(once) == once
    # JSON in flow style is also YAML, but json.loads is faster.
    after, own = (json.loads(each) if style == "json" else parse(each)[0] for each in (once, text))
    assert after["status"] == own["status"]
    assert after["metadata"] == own["metadata"]
    spec, before = template_of(after)["spec"], template_of(own)["spec"]
    assert [container["name"] for container in spec["initContainers"]][:3] == list(CONTAINERS)
    added = {"initContainers", "volumes"}
    assert {name: value for name, value in spec.items() if name not in added} == {
        name: value for name, value in before.items() if name not in added
    }
    for name in added:
        assert [item for item in spec[name] if item in (before.get(name) or [])] == (before.get(name) or [])


@given(st.text(max_size=60))
def test_any_text_is_returned_or_refused(text: str) -> None:
    try:
        assert inject_text(text) == text.removeprefix("\ufeff")
    except ManifestError as error:
        assert str(error)  # noqa: PT017 - both outcomes are valid


def test_annotation_for_a_state_secret_sets_node_policy_to_keep() -> None:
    containers = template_of(injected(annotated(deployment(), state_secret="web-state")))["spec"]["initContainers"]
    variables = {
        container["name"]: {variable["name"]: variable.get("value") for variable in container["env"]}
        for container in containers
    }
    assert variables["tailscale"]["TS_KUBE_SECRET"] == "web-state"
    assert (variables["cleanup"]["NODE_POLICY"], variables["cleanup"]["TS_KUBE_SECRET"]) == ("keep", "web-state")


@pytest.mark.parametrize("kind", ["Secret", "Role", "RoleBinding"])
def test_state_secret_and_its_role_are_appended_once(kind: str) -> None:
    text = json.dumps(annotated(deployment(), state_secret="web-state"))
    once = inject_text(text, with_state_secrets=True)
    assert inject_text(once, with_state_secrets=True) == once
    (appended,) = [document for document in yaml.safe_load_all(once) if document["kind"] == kind]
    assert appended["metadata"] == {"name": "web-state", "namespace": "services"}
    if kind == "Role":
        assert appended["rules"][0]["resourceNames"] == ["web-state"]
    if kind == "RoleBinding":
        assert appended["subjects"] == [{"kind": "ServiceAccount", "name": "default", "namespace": "services"}]


@pytest.mark.parametrize("field", ["serviceAccountName", "serviceAccount"])
def test_service_account_of_the_pod_gets_the_role(field: str) -> None:
    """`serviceAccount` is the old name of the field, which the API server still accepts."""
    document = annotated(with_pod_fields(deployment(), **{field: "web"}), state_secret="web-state")
    documents = yaml.safe_load_all(inject_text(json.dumps(document), with_state_secrets=True))
    (binding,) = [item for item in documents if item["kind"] == "RoleBinding"]
    assert [subject["name"] for subject in binding["subjects"]] == ["web"]


def test_each_ordinal_gets_a_state_secret() -> None:
    document = annotated(stateful_set(replicas=2), hostname="$(POD_NAME)", state_secret="$(POD_NAME)-state")
    document["spec"]["ordinals"] = {"start": 5}
    documents = list(yaml.safe_load_all(inject_text(json.dumps(document), with_state_secrets=True)))
    names = [item["metadata"]["name"] for item in documents if item["kind"] == "Secret"]
    assert names == ["web-5-state", "web-6-state"]
    (role,) = [item for item in documents if item["kind"] == "Role"]
    assert role["rules"][0]["resourceNames"] == names


@pytest.mark.parametrize("replicas", [0, -1])
def test_role_is_limited_to_a_secret_even_without_pods(replicas: int) -> None:
    """Kubernetes reads an empty list of resourceNames as all Secrets of the namespace."""
    document = annotated(stateful_set(replicas=replicas), hostname="$(POD_NAME)", state_secret="$(POD_NAME)-state")
    documents = yaml.safe_load_all(inject_text(json.dumps(document), with_state_secrets=True))
    (role,) = [item for item in documents if item["kind"] == "Role"]
    assert role["rules"][0]["resourceNames"] == ["web-0-state"]


def test_two_workloads_with_one_state_secret_are_refused() -> None:
    """A Deployment and a StatefulSet can have the same name."""
    documents = [annotated(workload, state_secret="web-state") for workload in (deployment(), stateful_set())]
    with pytest.raises(ManifestError, match=r"StatefulSet web: .* Deployment web"):
        inject_text("\n---\n".join(map(json.dumps, documents)), with_state_secrets=True)


@pytest.mark.parametrize("namespace", [None, ["services"]], ids=["missing", "list"])
def test_state_secret_needs_a_namespace(namespace: list[str] | None) -> None:
    document = annotated(deployment(), state_secret="web-state")
    document["metadata"]["namespace"] = namespace
    with pytest.raises(ManifestError, match=r"Deployment web: .*metadata\.namespace"):
        inject_text(json.dumps(document), with_state_secrets=True)


def test_state_secret_whose_name_is_known_only_in_the_pod_is_refused() -> None:
    document = annotated(stateful_set(), hostname="$(POD_NAME)", state_secret="$(POD_NAMESPACE)-state")
    with pytest.raises(ManifestError, match="StatefulSet web"):
        inject_text(json.dumps(document), with_state_secrets=True)
