"""Test the Kustomize components with many kinds of pods that have their own tailscale container."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from lifecycle.inject.template import PROJECT, template
from tests.inject.labelled_workloads import deployment, stateful_set, template_of
from tests.inject.samples import INJECT_SETTINGS, write_kustomization
from tests.inject.with_tailscale import (
    CASES,
    is_native,
    rendered_workload,
    workloads_with_tailscale,
)
from tests.pod.rendering import NEWEST_KUBERNETES, containers, render

pytestmark = pytest.mark.max_cases_without_full(10)

Document = dict[str, Any]

PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
PROBE_HANDLERS = {"exec", "grpc", "httpGet", "tcpSocket"}
VARIANTS = ("native", "plain", "sidecar")
"""The variants of the Kustomize component, named after their folders in deploy/components/lifecycle. `sidecar` is
for a tailscale container in `initContainers`. The others are for one in `containers`. Only `native` moves it to
`initContainers`."""
TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"

REQUIRED = template()["tailscale"]
"""The fields of the tailscale container that cleanup and dns-watch need."""

CHANGED = {"env", "securityContext", "volumeMounts", *PROBES}
"""Fields of the tailscale container that the component may change."""

CONFLICTING = {"TS_AUDIENCE", "TS_CLIENT_ID", "TS_CLIENT_SECRET", "TS_HEALTHCHECK_ADDR_PORT", "TS_ID_TOKEN"}
"""Variables that the component removes, because together with those that it sets, tailscale would not start."""

each_case = pytest.mark.parametrize(("name", "variant"), CASES, ids=["-".join(case) for case in CASES])


def spec_of(document: Document) -> Document:
    """Return the spec of a workload's pods."""
    spec: Document = template_of(document)["spec"]
    return spec


def own_and_result(name: str, variant: str) -> tuple[Document, Document]:
    """Return the tailscale container of the workload, and the tailscale container after the component was applied."""
    own, result = workloads_with_tailscale()[name], rendered_workload(name, variant)
    return containers(spec_of(own))["tailscale"], containers(spec_of(result))["tailscale"]


def by_field(key: str, items: list[Document] | None) -> dict[str, Document]:
    """Return the items of a list by the value of a field. Fail if two items have the same value."""
    by_key = {item[key]: item for item in items or []}
    assert len(by_key) == len(items or [])
    return by_key


def without(items: list[Document] | None, *names: str) -> list[Document]:
    """Return the items of a list, except the items with these names."""
    return [item for item in items or [] if item["name"] not in names]


def test_workloads_include_each_kind_with_and_without_native_sidecars() -> None:
    forms = {(document["kind"], is_native(document)) for document in workloads_with_tailscale().values()}
    assert forms == {(kind, native) for kind in ("Deployment", "StatefulSet") for native in (True, False)}


@pytest.mark.max_cases_without_full(3)
@each_case
def test_result_matches_the_schema(name: str, variant: str) -> None:
    kubernetes_validate.validate(rendered_workload(name, variant), NEWEST_KUBERNETES, strict=True)


@each_case
def test_names_and_mount_paths_are_unique_and_each_mount_has_a_volume(name: str, variant: str) -> None:
    spec = spec_of(rendered_workload(name, variant))
    all_containers = [*spec["initContainers"], *spec["containers"]]
    assert len(by_field("name", all_containers)) == len(containers(spec))
    volumes = by_field("name", spec["volumes"]).keys()
    claims = rendered_workload(name, variant)["spec"].get("volumeClaimTemplates", [])
    for container in all_containers:
        by_field("name", container.get("env"))
        mounts = by_field("mountPath", container.get("volumeMounts"))
        assert {mount["name"] for mount in mounts.values()} <= {
            *volumes,
            *(claim["metadata"]["name"] for claim in claims),
        }


@each_case
def test_tailscale_keeps_its_fields(name: str, variant: str) -> None:
    """The kept fields include the image, command, arguments, ports and lifecycle handlers."""
    own, result = own_and_result(name, variant)
    unchanged = {field: value for field, value in result.items() if field not in CHANGED}
    expected = {field: value for field, value in own.items() if field not in CHANGED}
    if variant != "plain":
        expected["restartPolicy"] = "Always"
    assert unchanged == expected


@each_case
def test_required_variables_are_set_and_other_variables_are_kept(name: str, variant: str) -> None:
    """The other variables include the hostname, the arguments of `tailscale up` and the state Secret."""
    own, result = own_and_result(name, variant)
    required = by_field("name", REQUIRED["env"])
    kept = without(own.get("env"), *required, *CONFLICTING)
    assert by_field("name", result["env"]) == by_field("name", kept) | required
    # The order must stay, because a variable can refer to variables before it.
    assert without(result["env"], *required) == kept


def test_socket_of_tailscale_is_kept() -> None:
    """Another container can use the socket, and the folder of the default socket can be read-only."""
    own, result = own_and_result("values-from-fields-and-tcp-probes", "plain")
    own_env, env = by_field("name", own["env"]), by_field("name", result["env"])
    assert env["TS_SOCKET"] == own_env["TS_SOCKET"]


@each_case
def test_probes_are_replaced(name: str, variant: str) -> None:
    """The component keeps those fields of a probe that it does not set itself, such as initialDelaySeconds."""
    own, result = own_and_result(name, variant)
    for probe in ("livenessProbe", "startupProbe"):
        kept = {field: value for field, value in (own.get(probe) or {}).items() if field not in PROBE_HANDLERS}
        assert result[probe] == kept | REQUIRED[probe]
    # A readiness probe would never succeed, because the health endpoint listens only on loopback.
    assert "readinessProbe" not in result


@each_case
def test_other_fields_of_the_security_context_are_kept(name: str, variant: str) -> None:
    own, result = own_and_result(name, variant)
    assert result["securityContext"] == (own.get("securityContext") or {}) | REQUIRED["securityContext"]


@each_case
def test_mounts_are_added_or_replace_mounts_at_the_same_path(name: str, variant: str) -> None:
    """Kustomize merges mounts at the same path. The result must have no option of the pod's mount, such as subPath."""
    own, result = own_and_result(name, variant)
    mounts = by_field("mountPath", result["volumeMounts"])
    assert mounts == by_field("mountPath", own.get("volumeMounts")) | by_field("mountPath", REQUIRED["volumeMounts"])
    assert mounts["/tailscale-auth"] == {
        "name": "tailscale-lifecycle-auth",
        "mountPath": "/tailscale-auth",
        "readOnly": True,
    }


@each_case
def test_containers_start_in_order(name: str, variant: str) -> None:
    own = spec_of(workloads_with_tailscale()[name])
    names = [container["name"] for container in spec_of(rendered_workload(name, variant))["initContainers"]]
    first = ["cleanup"] if variant == "plain" else ["cleanup", "tailscale", "dns-watch"]
    assert names == [*first, *(container["name"] for container in without(own.get("initContainers"), "tailscale"))]


@each_case
def test_cleanup_and_dns_watch_have_every_field_of_the_template(name: str, variant: str) -> None:
    all_containers = containers(spec_of(rendered_workload(name, variant)))
    for command in ("cleanup", "dns-watch"):
        container, expected = all_containers[command], template()[command]
        assert container["image"] == INJECT_SETTINGS.lifecycle_image
        assert container["envFrom"] == [{"configMapRef": {"name": "lifecycle"}}]
        # Other items of the template are placeholders, which the component does not contain.
        assert container["env"] == [variable for variable in expected["env"] if isinstance(variable, dict)]
        assert container["volumeMounts"] == [mount for mount in expected["volumeMounts"] if isinstance(mount, dict)]
        is_sidecar = command == "dns-watch" and variant != "plain"
        assert container.get("restartPolicy") == ("Always" if is_sidecar else None)
        fields = expected.keys() - {"image", "env", "volumeMounts"}
        assert {field: container[field] for field in fields} == {field: expected[field] for field in fields}


@each_case
def test_only_tailscale_gets_the_token(name: str, variant: str) -> None:
    """By default, cleanup and dns-watch do not need the token of the service account."""
    all_containers = containers(spec_of(rendered_workload(name, variant)))
    with_token = {
        container_name
        for container_name, container in all_containers.items()
        if any(mount["mountPath"] == TOKEN_PATH for mount in container.get("volumeMounts", []))
    }
    assert with_token == {"tailscale"}


@each_case
def test_rest_of_the_workload_is_unchanged(name: str, variant: str) -> None:
    """The rest includes the securityContext of the pod, other containers, volumes and the number of replicas."""
    own, result = workloads_with_tailscale()[name], rendered_workload(name, variant)
    added = [volume["name"] for volume in template()["volumes"]]
    assert [volume for volume in spec_of(result)["volumes"] if volume["name"] in added] == template()["volumes"]
    assert all(volume.startswith(f"{PROJECT}-") for volume in added)
    for document in (own, result):
        spec = spec_of(document)
        for group in ("initContainers", "containers"):
            spec[group] = without(spec.get(group), "cleanup", "tailscale", "dns-watch")
        spec["volumes"] = without(spec.get("volumes"), *added)
    assert result == own


def with_container_named(name: str) -> Document:
    """Return a Deployment whose tailscale container has this name."""
    document = workloads_with_tailscale()["from-tailscale-docs"]
    containers(spec_of(document))["tailscale"]["name"] = name
    return document


UNSUITABLE = {
    "another-name": with_container_named("ts-sidecar"),
    "no-container": deployment(),
    "no-container-in-a-statefulset": stateful_set(),
}
SUITABLE = {"plain": "from-tailscale-docs", "native": "from-tailscale-docs", "sidecar": "native-sidecar"}
"""A suitable workload for each variant."""


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("document", UNSUITABLE.values(), ids=list(UNSUITABLE))
def test_workload_without_a_tailscale_container_fails_the_build(
    document: Document, variant: str, tmp_path: Path
) -> None:
    assert_not_rendered(document, tmp_path, variant)


@pytest.mark.parametrize(
    ("name", "variant"), [("native-sidecar", "plain"), ("native-sidecar", "native"), ("key-as-value", "sidecar")]
)
def test_unsuitable_variant_fails_the_build(name: str, variant: str, tmp_path: Path) -> None:
    assert_not_rendered(workloads_with_tailscale()[name], tmp_path, variant)


def assert_not_rendered(document: Document, folder: Path, variant: str) -> None:
    """Check that kubectl fails, and names the field that is missing."""
    group = "initContainers" if variant == "sidecar" else "containers"
    with pytest.raises(AssertionError, match="does not render") as failure:
        render(write_kustomization(folder, [document], variant))
    assert f"spec.template.spec.{group}.[name=tailscale].name" in str(failure.value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_workloads_with_the_label_off_are_not_changed(variant: str, tmp_path: Path) -> None:
    """The label tailscale-lifecycle=off excludes workloads of a kustomization from the component."""
    excluded = [deployment(), stateful_set(), with_container_named("ts-sidecar"), with_container_named("tailscale")]
    for number, document in enumerate(excluded):
        document["metadata"] |= {"name": f"excluded-{number}", "labels": {"tailscale-lifecycle": "off"}}
    documents = [*excluded, workloads_with_tailscale()[SUITABLE[variant]]]
    rendered = by_name(render(write_kustomization(tmp_path, documents, variant)))
    assert rendered == by_name(excluded) | {SUITABLE[variant]: rendered_workload(SUITABLE[variant], variant)}


def by_name(documents: list[Document]) -> dict[str, Document]:
    """Return workloads by name."""
    return {document["metadata"]["name"]: document for document in documents}
