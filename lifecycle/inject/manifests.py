"""Add the containers cleanup, tailscale and dns-watch to the labelled workloads in Kubernetes manifests."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lifecycle.domain.errors import ManifestError
from lifecycle.domain.text import printable
from lifecycle.inject.documents import join_texts, parse_document, split_documents, to_yaml, write_document
from lifecycle.inject.rules import (
    INIT_CONTAINERS,
    LABEL,
    STATE_SECRET,
    Workload,
    placeholder_values,
    refusals,
)
from lifecycle.inject.state import state_objects
from lifecycle.inject.template import PROJECT, added_volumes, filled_containers
from lifecycle.settings.models import InjectSettings

# The path of the pod template in each kind of object. A Pod is its own template.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "Pod": (),
    "Deployment": ("spec", "template"),
    "StatefulSet": ("spec", "template"),
    "ReplicaSet": ("spec", "template"),
    "ReplicationController": ("spec", "template"),
    "DaemonSet": ("spec", "template"),
    "Job": ("spec", "template"),
    "CronJob": ("spec", "jobTemplate", "spec", "template"),
}

# The API versions of the kinds in TEMPLATES.
_VERSIONS = frozenset({"v1", "apps/v1", "batch/v1"})


def inject(
    texts: Sequence[str], settings: InjectSettings, shared: Mapping[str, str], *, with_state_secrets: bool = False
) -> str:
    """Add the containers to each workload that has the label.

    Other documents stay as they are. In a changed document, comments and the layout are lost.

    Args:
        texts: the content of each file: YAML documents, or one JSON document.
        shared: the variables of cleanup and dns-watch that all workloads share.
        with_state_secrets: append each missing Secret for tailscale's state, with the Role that permits its use.

    Raises:
        ManifestError: lists every object that cannot be changed, with the reason.
    """
    problems: list[str] = []
    results: list[str] = []
    values: list[Any] = []
    workloads: list[Workload] = []

    def with_containers(manifest: dict[str, Any]) -> dict[str, Any]:
        workload = _workload(manifest)
        if workload is None:
            return manifest
        workloads.append(workload)
        reasons = list(refusals(workload, settings.domain_name))
        problems.extend(f"{workload}: {reason}" for reason in reasons)
        if reasons or not workload.requests_injection or workload.is_injected:
            return manifest
        return _add_containers(workload, filled_containers(placeholder_values(workload, settings, shared)))

    # The other documents cannot contain a workload with the label, or an object that is appended.
    relevant = (PROJECT, "Secret", "Role") if with_state_secrets else (PROJECT,)
    for number, document in enumerate(split_documents(join_texts(texts)), 1):
        if any(word in document for word in relevant):
            try:
                value, document = _changed_document(document, with_containers)  # noqa: PLW2901
                values.append(value)
            except ManifestError as error:
                problems.append(f"document {number}: {error}")
        results.append(document)
    if with_state_secrets and not problems:
        results = [join_texts([*results, *_state_documents(workloads, values, problems)])]
    if problems:
        raise ManifestError("\n".join(map(printable, problems)))
    return "".join(results)


def _changed_document(document: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> tuple[Any, str]:
    """Return the value of a document, and its text after the change."""
    try:
        value, is_json = parse_document(document)
        changed = _changed_objects(value, change)
        return value, document if changed is value else write_document(document, changed, is_json=is_json)
    except RecursionError:
        raise ManifestError("is nested too deeply") from None


def _changed_objects(value: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return an object, or a list of objects, after the change; the same value if nothing was changed.

    Aliases can refer to a part of the value from other places, so the value itself is not changed.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ManifestError("is not an object")
    kind, items = str(value.get("kind")), value.get("items")
    if not kind.endswith("List") or not isinstance(items, list):
        return change(value)
    if kind != "List" and not all(_object_at(item).get("kind") for item in items):
        raise ManifestError(f"is a {kind} whose items have no kind. Use a List")
    changed = [_changed_objects(item, change) for item in items]
    return value if all(map(operator.is_, changed, items)) else {**value, "items": changed}


def _add_containers(workload: Workload, containers: list[Any]) -> dict[str, Any]:
    """Return the manifest of a workload with these containers and their volumes."""
    spec = workload.spec
    own = spec.get("initContainers") or []
    # "before" means that the pod's own init containers start before the added containers.
    starts_first = workload.annotations.get(INIT_CONTAINERS) == "before"
    changed: Any = {
        **spec,
        "initContainers": [*own, *containers] if starts_first else [*containers, *own],
        "volumes": [*(spec.get("volumes") or []), *added_volumes()],
    }
    path = (*TEMPLATES[workload.kind], "spec")
    for depth in reversed(range(len(path))):
        changed = {**_object_at(workload.manifest, *path[:depth]), path[depth]: changed}
    return dict(changed)


def _workload(manifest: dict[str, Any]) -> Workload | None:
    """Return the workload of an object; None if the object has no pod template of a known kind."""
    kind = str(manifest.get("kind", "object"))
    metadata = _object_at(manifest, "metadata")
    name = str(metadata.get("name") or metadata.get("generateName") or "without a name")
    if kind not in TEMPLATES or str(manifest.get("apiVersion", "v1")) not in _VERSIONS:
        if any(_has_label(value) for field, value in manifest.items() if field != "metadata"):
            raise ManifestError(
                f"{kind} {name} has the label {LABEL}, but its kind is not known. Remove the label, or use "
                "the admission policy of deploy/inject, which works with pods of every kind"
            )
        return None
    template = _object_at(manifest, *TEMPLATES[kind])
    metadata_of_pods, spec = _object_at(template, "metadata"), _object_at(template, "spec")
    try:
        pod_count = _pod_count(manifest, kind)
        _check_shape(metadata_of_pods, spec)
    except ManifestError as error:
        raise ManifestError(f"{kind} {name}: {error}") from None
    return Workload(
        kind=kind,
        name=name,
        manifest=manifest,
        pod_count=pod_count,
        labels_outside=_labels_outside(manifest),
        labels=_texts(metadata_of_pods.get("labels")),
        annotations=_texts(metadata_of_pods.get("annotations")),
        spec=spec,
    )


def _texts(values: dict[str, Any] | None) -> dict[str, Any]:
    """Return labels or annotations, with an empty text in place of null. Kubernetes reads null in the same way."""
    return {name: "" if value is None else value for name, value in (values or {}).items()}


def _labels_outside(data: Any) -> dict[str, Any]:
    """Return the labels of an object itself, and those of the Jobs of a CronJob."""
    job = _object_at(data, "spec", "jobTemplate", "metadata", "labels")
    return _object_at(data, "metadata", "labels") | job


def _has_label(data: Any) -> bool:
    """Return True if a value contains an object that has the label."""
    if isinstance(data, list):
        return any(map(_has_label, data))
    is_object = isinstance(data, dict)
    return is_object and (LABEL in _object_at(data, "labels") or any(map(_has_label, data.values())))


def _check_shape(metadata: dict[str, Any], spec: dict[str, Any]) -> None:
    """Raise an error if a field of the pod template that this program reads does not have the required type."""
    wrong = [name for name in ("labels", "annotations") if not isinstance(metadata.get(name) or {}, dict)]
    for group in ("containers", "initContainers", "volumes"):
        members = spec.get(group)
        if not _is_list_of_objects(members):
            wrong.append(group)
        elif not all(_is_list_of_objects(member.get("ports")) for member in members or []):
            wrong.append("ports")
        elif not all(isinstance(member.get("name", ""), str) for member in members or []):
            wrong.append(f"the names of {group}")
    if wrong:
        raise ManifestError(f"{', '.join(wrong)} of the pod template are malformed")
    if LABEL in (metadata.get("labels") or {}) and not spec.get("containers"):
        raise ManifestError("the pod template has no containers")


def _is_list_of_objects(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(member, dict) for member in value))


def _pod_count(manifest: dict[str, Any], kind: str) -> int:
    """Return how many pods of an object run at the same time, according to `replicas` or `parallelism`."""
    spec = _object_at(manifest, *(("spec", "jobTemplate", "spec") if kind == "CronJob" else ("spec",)))
    field = "parallelism" if kind in ("Job", "CronJob") else "replicas"
    count = spec.get(field)
    if count is not None and not isinstance(count, int):
        raise ManifestError(f"{field} is {count}, which is not an integer")
    return 1 if count is None else count


def _object_at(data: Any, *path: str) -> dict[str, Any]:
    """Return the object at a path; {} if there is none."""
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def _state_documents(workloads: Sequence[Workload], values: Sequence[Any], problems: list[str]) -> list[str]:
    """Return the state Secrets that are missing, with their Roles and RoleBindings."""
    present = {identity for value in values for identity in _identities(value)}
    owners: dict[tuple[str, str], str] = {}
    documents = []
    for workload in workloads:
        if not workload.requests_injection or not workload.annotations.get(STATE_SECRET):
            continue
        try:
            contents = list(state_objects(workload))
            for content in contents:
                secret = (content["metadata"]["namespace"], content["metadata"]["name"])
                if content["kind"] == "Secret" and owners.setdefault(secret, str(workload)) != str(workload):
                    raise ManifestError(
                        f"The state Secret {secret[1]} is also that of {owners[secret]}. Set another name."
                    )
        except ManifestError as error:
            problems.append(f"{workload}: {error}")
            continue
        documents += [to_yaml(content) for content in contents if next(_identities(content)) not in present]
    return documents


def _identities(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the kind, namespace and name of each object in a document and in its lists."""
    items = _object_at(value).get("items")
    if isinstance(items, list):
        for item in items:
            yield from _identities(item)
    metadata = _object_at(value, "metadata")
    yield tuple(map(str, (_object_at(value).get("kind"), metadata.get("namespace"), metadata.get("name"))))
