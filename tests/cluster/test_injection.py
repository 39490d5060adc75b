"""Test on a real API server that the admission policies add the same containers as `lifecycle inject` and Kustomize."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lifecycle.inject.rules import LABEL
from lifecycle.inject.template import CONTAINERS
from tests.cluster.api_server import ApiServer, RefusedError
from tests.cluster.conftest import set_settings
from tests.inject.labelled_workloads import ACCEPTED, REFUSED, deployment, pod, template_of
from tests.inject.samples import (
    INJECT_SETTINGS,
    LOGIN_SERVER,
    NAMES,
    SETTINGS,
    comparable,
    in_required_order,
    injected,
    literals_of,
    prepared_for_component,
    workloads,
    write_kustomization,
)
from tests.pages import ROOT
from tests.pod.rendering import render
from tests.real.programs import eventually

Document = dict[str, Any]


def pod_of(workload: Document) -> Document:
    """Return the pod that the controller of a workload creates, in the namespace `services`."""
    if workload["kind"] == "Pod":
        return workload
    template = template_of(workload)
    metadata = {"name": f"{workload['metadata']['name']}-0", "namespace": "services", **template["metadata"]}
    spec = dict(template["spec"])
    claims = [claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", [])]
    spec["volumes"] = [
        *(spec.get("volumes") or []),
        *({"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims),
    ]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def admitted(server: ApiServer, document: Document, config: dict[str, str] | None = None) -> Document:
    """Return the spec of a pod as the API server admits it, in a form that is the same for equivalent pods.

    Args:
        config: the content of the ConfigMap `lifecycle`, to which the pods of the Kustomize component refer.
    """
    spec = server.create_dry_run(document)["spec"]
    # The API server adds a volume with a random name, for the service account's token.
    for container in [*spec["initContainers"], *spec["containers"]]:
        container["volumeMounts"] = [
            mount for mount in container.get("volumeMounts", []) if not mount["name"].startswith("kube-api-access-")
        ]
    spec["volumes"] = [volume for volume in spec["volumes"] if not volume["name"].startswith("kube-api-access-")]
    return comparable(spec, config)


@pytest.mark.parametrize("name", NAMES)
def test_policy_command_and_component_create_the_same_pod(api_server: ApiServer, name: str, tmp_path: Path) -> None:
    workload, config = workloads()[name], literals_of(workloads()[name])
    for document in (workload, injected(workload)):
        api_server.create_dry_run(document)
    by_policy = admitted(api_server, pod_of(workload))
    by_inject = admitted(api_server, pod_of(injected(workload)))
    document = prepared_for_component(workloads()[name])
    rendered = render(write_kustomization(tmp_path, [document], "with-tailscale", config))
    (result,) = [document for document in rendered if document["kind"] == workload["kind"]]
    # The component ignores the annotation init-containers, so sort the containers as the annotation requires.
    in_required_order(workload, template_of(result)["spec"])
    by_component = admitted(api_server, pod_of(result), config)

    names = [container["name"] for container in by_policy["initContainers"]]
    assert [name for name in names if name in CONTAINERS] == list(CONTAINERS)
    assert by_policy == by_inject
    assert by_component == by_inject


@pytest.mark.parametrize("name", REFUSED)
def test_invalid_workload_is_refused_with_its_name_and_a_remedy(api_server: ApiServer, name: str) -> None:
    document, texts = REFUSED[name]
    message = api_server.refusal(document)
    assert document["metadata"]["name"] in message
    assert [text for text in texts if text not in message] == []
    assert "expression" not in message


@pytest.mark.parametrize("name", ACCEPTED)
def test_valid_workload_is_accepted(api_server: ApiServer, name: str) -> None:
    api_server.create_dry_run(ACCEPTED[name])


@pytest.mark.parametrize("name", [name for name in ACCEPTED if name != "label-false"])
def test_policy_and_command_create_the_same_pod_for_each_kind(api_server: ApiServer, name: str) -> None:
    by_policy = admitted(api_server, pod_of(ACCEPTED[name]))
    assert by_policy == admitted(api_server, pod_of(injected(ACCEPTED[name])))


def test_scaled_deployment_can_be_annotated_and_deleted(api_server: ApiServer) -> None:
    """The policies do not check `kubectl scale`. They reject changes of the scaled Deployment's pod template."""
    document = deployment()
    document["metadata"]["name"] = "scaled"
    api_server.create(document)
    api_server.kubectl("-n", "services", "scale", "deployment", "scaled", "--replicas=3")
    api_server.kubectl("-n", "services", "annotate", "deployment", "scaled", "a=b")
    with pytest.raises(RefusedError, match="3 pods"):
        api_server.kubectl("-n", "services", "set", "image", "deployment/scaled", "web=docker.io/library/web:2")
    api_server.kubectl("-n", "services", "delete", "deployment", "scaled", "--cascade=foreground", "--wait=false")
    # The garbage collector, which removes this finalizer, does not run.
    api_server.kubectl("-n", "services", "patch", "deployment", "scaled", "-p", '{"metadata":{"finalizers":null}}')
    assert api_server.kubectl("-n", "services", "get", "deployment", "scaled", "--ignore-not-found") == ""


def test_only_labelled_pods_are_refused_without_the_settings(api_server: ApiServer) -> None:
    unlabelled = pod()
    del unlabelled["metadata"]["labels"][LABEL]
    del unlabelled["metadata"]["annotations"]
    api_server.kubectl("delete", "configmap", "-n", "tailscale-lifecycle-inject", "tailscale-lifecycle")
    try:
        eventually(lambda: api_server.refusal(pod()) != "", "a refusal of the labelled pod")
        assert api_server.refusal(unlabelled) == ""
    finally:
        restore_settings(api_server)


def test_pod_is_not_changed_without_the_label_of_the_pod_or_of_the_namespace(api_server: ApiServer) -> None:
    elsewhere, unlabelled = pod(), pod()
    elsewhere["metadata"]["namespace"] = "elsewhere"
    del unlabelled["metadata"]["labels"][LABEL]
    for document in (elsewhere, unlabelled):
        assert "initContainers" not in api_server.create_dry_run(document)["spec"]


def restore_settings(server: ApiServer) -> None:
    """Write the settings of the fixture `api_server` again, and wait until they take effect."""
    set_settings(server)
    expected = admitted(server, pod_of(injected(deployment())))
    eventually(
        lambda: server.refusal(pod()) == "" and admitted(server, pod_of(deployment())) == expected, "the old settings"
    )


EMPTY_SETTINGS = (
    "SELF_HEAL",
    "HEADSCALE_API_KEY_SECRET",
    "HEADSCALE_API_KEY_FILE",
    "TAILSCALE_IMAGE",
    "LIFECYCLE_IMAGE",
)


@pytest.mark.parametrize(
    ("settings", "without_effect"),
    [
        ({"HEADSCALE_ACCESS": "exec", "AUTHKEY_TAGS": "tag:all"}, {}),
        ({"KUBERNETES_EVENTS": "true"}, {}),
        ({"KUBERNETES_EVENTS": "off"}, {}),
        # The program removes the line break, too.
        ({"HEADSCALE_ACCESS": "exec", "AUTHKEY_TAGS": "tag:all"}, {"HEADSCALE_ACCESS": "exec\n"}),
        # An empty setting counts as unset. The slash at the end of the URL is removed.
        ({"AUTHKEY_TAGS": "tag:now"}, {**dict.fromkeys(EMPTY_SETTINGS, ""), "LOGIN_SERVER": f"{LOGIN_SERVER}/"}),
    ],
    ids=["exec", "events", "no-events", "line-break", "empty"],
)
def test_settings_reach_the_containers(
    api_server: ApiServer, settings: dict[str, str], without_effect: dict[str, str]
) -> None:
    image = without_effect.get("LIFECYCLE_IMAGE", "registry.example.com/lifecycle:1")
    set_settings(api_server, **{"LIFECYCLE_IMAGE": image, **settings, **without_effect})
    try:
        images = {"lifecycle_image": image} if image else {}
        command = INJECT_SETTINGS.model_copy(update=images)
        expected = admitted(api_server, pod_of(injected(deployment(), SETTINGS | settings, command)))
        eventually(lambda: admitted(api_server, pod_of(deployment())) == expected, "the new settings")
    finally:
        restore_settings(api_server)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"DOMAIN_NAME": None}, "DOMAIN_NAME"),
        ({"LOGIN_SERVER": None}, "LOGIN_SERVER"),
        ({"LOGIN_SERVER": "http://headscale.headscale.svc:8080"}, "LOGIN_SERVER"),
        ({"HEADSCALE_USR": "x"}, "HEADSCALE_USR"),
        ({"TS_HOSTNAME": "x"}, "TS_HOSTNAME"),
    ],
    ids=["no-domain", "no-login-server", "http-with-a-name", "unknown-setting", "setting-of-one-pod"],
)
def test_invalid_settings_are_reported(api_server: ApiServer, settings: dict[str, str | None], text: str) -> None:
    set_settings(api_server, **settings)
    try:
        message = eventually(lambda: api_server.refusal(pod()) or None, "a refusal")
        assert text in message
        assert "tailscale-lifecycle-inject" in message
    finally:
        restore_settings(api_server)


def test_expressions_of_both_policies_have_valid_types(api_server: ApiServer) -> None:
    """The API server checks the types for each matched resource, and writes warnings into the status."""
    for kind in ("mutatingadmissionpolicies", "validatingadmissionpolicies"):
        policy = json.loads(api_server.kubectl("get", kind, "tailscale-lifecycle", "-o", "json"))
        assert not policy.get("status", {}).get("typeChecking", {}).get("expressionWarnings"), yaml.safe_dump(policy)


def test_containers_are_added_once_when_the_policy_is_called_twice(api_server: ApiServer) -> None:
    """The API server calls a policy again when a later policy has changed the pod."""
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    expression = "Object{metadata: Object.metadata{labels: {'other': 'policy'}}}"
    specs = {
        "MutatingAdmissionPolicy": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            "matchConstraints": {"resourceRules": [rule]},
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
        },
        "MutatingAdmissionPolicyBinding": {"policyName": "zz-other"},
    }
    common = {"apiVersion": api_server.policy_version, "metadata": {"name": "zz-other"}}
    api_server.create(*({**common, "kind": kind, "spec": spec} for kind, spec in specs.items()))
    try:
        created = eventually(
            lambda: result if "other" in (result := api_server.create_dry_run(pod()))["metadata"]["labels"] else None,
            "the other policy in force",
        )
        assert [container["name"] for container in created["spec"]["initContainers"]] == list(CONTAINERS)
    finally:
        for kind in reversed(specs):
            api_server.kubectl("delete", kind, "zz-other")


def test_image_build_is_accepted_with_server_side_apply(api_server: ApiServer, tmp_path: Path) -> None:
    """Client-side apply would copy the ConfigMap with the sources into an annotation, for which it is too large."""
    folder = tmp_path / "build"
    shutil.copytree(ROOT / "build", folder)
    subprocess.run([ROOT / "scripts/image", "--sources", folder / "sources.tar.gz"], check=True)
    api_server.create_namespace("tailscale-lifecycle", {})
    api_server.kubectl("apply", "--server-side", "-k", folder)
