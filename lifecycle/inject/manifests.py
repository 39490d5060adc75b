"""Add the containers cleanup, tailscale and dns-watch to the labelled workloads in Kubernetes manifests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import yaml

from lifecycle.domain.errors import ManifestError
from lifecycle.domain.text import printable
from lifecycle.inject.documents import block_yaml, join_documents, parse_document, split_documents, write_document
from lifecycle.inject.nodes import ItemsAsText, add_items, field_of, node_value, resolve_aliases, scalar_text
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

# How deep lists within lists are searched. An alias can make a list contain itself.
_MAX_LIST_DEPTH = 3


def inject(
    texts: Sequence[str], settings: InjectSettings, shared: Mapping[str, str], *, with_state_secrets: bool = False
) -> str:
    """Add the containers to each workload that has the label.

    Other documents stay as they are. In a changed document, every value keeps its spelling, but comments and the layout
    are lost.

    Args:
        texts: the content of each file: YAML documents, or one JSON document.
        shared: the variables of cleanup and dns-watch that all workloads share.
        with_state_secrets: append each missing Secret for tailscale's state, with the Role that permits its use.

    Raises:
        ManifestError: lists every object that cannot be changed, with the reason.
    """
    problems: list[str] = []
    results: list[str] = []
    roots: list[yaml.Node] = []
    workloads: list[Workload] = []
    for number, (document, separator) in enumerate(_separated(texts), 1):
        added: list[ItemsAsText | None] = []
        try:
            root, is_json = parse_document(document)
            for node in list(_objects(root, document)):
                workload = _workload(node)
                if workload is not None:
                    workloads.append(workload)
                    added += _add_containers(workload, settings, shared, problems)
        except ManifestError as error:
            problems.append(f"document {number}: {error}")
            continue
        roots.append(root)
        results.append(separator + (write_document(document, root, added, is_json=is_json) if added else document))
    if with_state_secrets and not problems:
        results += _state_documents(workloads, roots, problems)
    if problems:
        raise ManifestError("\n".join(map(printable, problems)))
    return join_documents(results)


def _separated(texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each document of several files, and the separator that has to be written before the document, or ""."""
    for index, text in enumerate(texts):
        for position, document in enumerate(split_documents(text)):
            needs_separator = index > 0 and position == 0 and not document.startswith("---")
            # Before a directive, such as %YAML, the previous document must end with "...".
            separator = "...\n" if document.startswith("%") else "---\n"
            yield document, separator if needs_separator else ""


def _objects(root: yaml.Node, document: str) -> Iterator[yaml.MappingNode]:
    """Yield the objects of a document and its lists, if the document contains this program's label or annotations."""
    # The text can contain PROJECT with escapes, such as "\u002d" for "-".
    if (PROJECT not in document and "\\" not in document) or f"{PROJECT}/" not in scalar_text(root):
        return
    resolve_aliases(root)
    yield from _members(root)


def _members(node: yaml.Node) -> Iterator[yaml.MappingNode]:
    """Yield an object, or the objects in it if it is a list."""
    if not isinstance(node, yaml.MappingNode):
        raise ManifestError("is not an object")
    kind = field_of(node, "kind")
    items = field_of(node, "items")
    if isinstance(kind, yaml.ScalarNode) and str(kind.value).endswith("List") and isinstance(items, yaml.SequenceNode):
        for item in items.value:
            if field_of(item, "kind") is None and kind.value != "List":
                raise ManifestError(f"is a {kind.value} whose items have no kind. Use a List")
            yield from _members(item)
    else:
        yield node


def _add_containers(
    workload: Workload, settings: InjectSettings, shared: Mapping[str, str], problems: list[str]
) -> list[ItemsAsText | None]:
    """Add the containers and volumes to one workload if it has the label.

    Args:
        problems: gets the reasons why the containers cannot be added.

    Returns:
        For each changed list, the items that `write_document` adds as text; None if they were added as nodes.
    """
    reasons = list(refusals(workload, settings.domain_name))
    problems += [f"{workload}: {reason}" for reason in reasons]
    if reasons or not workload.requests_injection or workload.is_injected:
        return []
    containers = filled_containers(placeholder_values(workload, settings, shared))
    # "before" means that the pod's own init containers start before the added containers.
    at_end = workload.annotations.get(INIT_CONTAINERS) == "before"
    spec = cast("yaml.MappingNode", field_of(workload.node, *TEMPLATES[workload.kind], "spec"))
    return [
        add_items(spec, "initContainers", containers, at_end=at_end),
        add_items(spec, "volumes", added_volumes(), at_end=True),
    ]


def _workload(node: yaml.MappingNode) -> Workload | None:
    """Return the workload of an object; None if the object has no pod template of a known kind."""
    manifest: dict[str, Any] = node_value(node)
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
        node=node,
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


def _state_documents(workloads: Sequence[Workload], roots: Sequence[yaml.Node], problems: list[str]) -> list[str]:
    """Return the state Secrets that are missing, with their Roles and RoleBindings."""
    present = {identity for root in roots for identity in _identities(root)}
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
        documents += [
            f"---\n{block_yaml(content)}"
            for content in contents
            if (content["kind"], content["metadata"]["namespace"], content["metadata"]["name"]) not in present
        ]
    return documents


def _identities(node: yaml.Node, depth: int = 0) -> Iterator[tuple[str, str, str]]:
    """Yield the kind, namespace and name of each object in a document and in its lists."""
    items = field_of(node, "items")
    if isinstance(items, yaml.SequenceNode) and depth < _MAX_LIST_DEPTH:
        for item in items.value:
            yield from _identities(item, depth + 1)
    fields = (field_of(node, "kind"), field_of(node, "metadata", "namespace"), field_of(node, "metadata", "name"))
    kind, namespace, name = (str(field.value) if isinstance(field, yaml.ScalarNode) else "" for field in fields)
    yield kind, namespace, name
