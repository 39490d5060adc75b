"""Functions that build workloads with the label that requests the containers.

REFUSED and ACCEPTED are the workloads that `lifecycle inject` and the admission policies must refuse and accept.
"""

from __future__ import annotations

from typing import Any

from lifecycle.inject.rules import HOSTNAME, INIT_CONTAINERS, LABEL, STATE_SECRET, TAILSCALE_ARGS

Document = dict[str, Any]


def deployment(**spec: Any) -> Document:
    """Return a Deployment that is accepted, unless the arguments change that."""
    return _workload("apps/v1", "Deployment", **spec)


def stateful_set(**spec: Any) -> Document:
    """Return a StatefulSet that is accepted, unless the arguments change that."""
    return _workload("apps/v1", "StatefulSet", serviceName="web", **spec)


def daemon_set() -> Document:
    """Return a DaemonSet that is refused, because its hostname does not contain the name of the cluster node."""
    return _workload("apps/v1", "DaemonSet")


def job(**spec: Any) -> Document:
    """Return a Job that is accepted, unless the arguments change that."""
    document = _workload("batch/v1", "Job", **spec)
    del document["spec"]["selector"]
    document["spec"]["template"]["spec"]["restartPolicy"] = "Never"
    return document


def cron_job(**spec: Any) -> Document:
    """Return a CronJob that is accepted, unless the arguments change that."""
    inner = job(**spec)["spec"]
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": "web", "namespace": "services"},
        "spec": {"schedule": "0 3 * * *", "jobTemplate": {"spec": inner}},
    }


def pod() -> Document:
    """Return a Pod that is accepted."""
    template = deployment()["spec"]["template"]
    metadata = {"name": "web", "namespace": "services", **template["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _workload(version: str, kind: str, **spec: Any) -> Document:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": "web", "namespace": "services"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web", LABEL: "true"}, "annotations": {HOSTNAME: "web"}},
                "spec": {"containers": [{"name": "web", "image": "docker.io/library/web:1"}]},
            },
            **spec,
        },
    }


def template_of(document: Document) -> Document:
    """Return the pod template of a workload, or a Pod itself."""
    if document["kind"] == "Pod":
        return document
    spec = document["spec"]
    template: Document = (spec["jobTemplate"]["spec"] if document["kind"] == "CronJob" else spec)["template"]
    return template


def annotated(document: Document, **annotations: str | None) -> Document:
    """Set annotations, such as `state_secret` for tailscale-lifecycle/state-secret. None removes an annotation."""
    metadata = template_of(document)["metadata"]
    for name, value in annotations.items():
        key = f"tailscale-lifecycle/{name.replace('_', '-')}"
        if value is None:
            del metadata["annotations"][key]
        else:
            metadata["annotations"][key] = value
    return document


def labelled(document: Document, **labels: str) -> Document:
    """Set labels, such as `inject` for tailscale-lifecycle/inject."""
    metadata = template_of(document)["metadata"]
    metadata["labels"] |= {f"tailscale-lifecycle/{name}": value for name, value in labels.items()}
    return document


def with_pod_fields(document: Document, **fields: Any) -> Document:
    """Set fields of the pod's spec."""
    template_of(document)["spec"] |= fields
    return document


def with_label_at_the_object(document: Document) -> Document:
    """Move the label from the pod template to the object itself."""
    document["metadata"]["labels"] = {LABEL: template_of(document)["metadata"]["labels"].pop(LABEL)}
    return document


def with_label_at_the_job_template(document: Document) -> Document:
    """Move the label from the pod template of a CronJob to the template of its Jobs."""
    label = template_of(document)["metadata"]["labels"].pop(LABEL)
    document["spec"]["jobTemplate"]["metadata"] = {"labels": {LABEL: label}}
    return document


def _containers(*names: str, **fields: Any) -> list[Document]:
    return [{"name": name, "image": "docker.io/library/web:1", **fields} for name in names]


_KEY_VOLUME = {"name": "tailscale-lifecycle-auth", "emptyDir": {}}
# The start of the list of known annotations in a message.
_ANNOTATIONS_TEXT = "are tailscale-lifecycle/hostname, "

REFUSED: dict[str, tuple[Document, tuple[str, ...]]] = {
    "label-yes": (labelled(deployment(), inject="yes"), (LABEL, "yes")),
    "label-upper-case": (labelled(pod(), inject="True"), (LABEL, "True")),
    "unknown-label": (
        labelled(deployment(), hostname="web"),
        ("label tailscale-lifecycle/hostname", _ANNOTATIONS_TEXT),
    ),
    "unknown-annotation": (annotated(deployment(), ttl="60"), ("tailscale-lifecycle/ttl", _ANNOTATIONS_TEXT)),
    "near-miss": (
        annotated(deployment(), host_name="web"),
        ("host-name (did you mean tailscale-lifecycle/hostname?)",),
    ),
    "label-as-annotation": (annotated(deployment(), inject="true"), ("annotation tailscale-lifecycle/inject",)),
    "label-of-the-object": (with_label_at_the_object(deployment()), (LABEL, "pod template")),
    "label-of-the-job-template": (with_label_at_the_job_template(cron_job()), (LABEL, "pod template")),
    "no-hostname": (annotated(deployment(), hostname=None), (HOSTNAME, "wiki.example.com")),
    "empty-hostname": (annotated(deployment(), hostname=""), (HOSTNAME,)),
    "upper-case-hostname": (annotated(deployment(), hostname="Web"), (HOSTNAME, "Web")),
    "underscore": (annotated(deployment(), hostname="my_web"), (HOSTNAME, "my_web")),
    "outer-hyphen": (annotated(pod(), hostname="-web"), (HOSTNAME, "-web")),
    "empty-part": (annotated(pod(), hostname="web..example.com"), (HOSTNAME, "web..example.com")),
    "unknown-reference": (annotated(deployment(), hostname="web-$(OTHER)"), (HOSTNAME, "web-$(OTHER)")),
    "other-domain": (annotated(deployment(), hostname="web.example.org"), (HOSTNAME, "web.example.org", "example.com")),
    "no-dot-before-domain": (
        annotated(deployment(), hostname="webexample.com"),
        (HOSTNAME, "webexample.com"),
    ),
    "partial-domain": (annotated(deployment(), hostname="docs.web"), (HOSTNAME, "docs.web")),
    "long-hostname": (annotated(deployment(), hostname="w" * 52), (HOSTNAME, f"{'w' * 52}.example.com")),
    "alias": (annotated(deployment(), dns_aliases="docs,my_docs"), ("tailscale-lifecycle/dns-aliases", "my_docs")),
    "wildcard-inside": (
        annotated(deployment(), dns_aliases="docs.*.wiki"),
        ("tailscale-lifecycle/dns-aliases", "docs.*.wiki"),
    ),
    "aliases-with-blank": (
        annotated(deployment(), dns_aliases="docs, www"),
        ("tailscale-lifecycle/dns-aliases", "docs, www"),
    ),
    "shared-name": (
        annotated(deployment(), dns_shared_names="-apps"),
        ("tailscale-lifecycle/dns-shared-names", "-apps"),
    ),
    "tags": (annotated(deployment(), tags="web"), ("tailscale-lifecycle/tags", "web")),
    "tags-with-blank": (annotated(deployment(), tags="tag:a, tag:b"), ("tailscale-lifecycle/tags",)),
    "state-secret": (annotated(deployment(), state_secret="Web_Secret"), (STATE_SECRET, "Web_Secret")),
    "self-heal": (annotated(deployment(), self_heal="on"), ("tailscale-lifecycle/self-heal", '"on"')),
    "log-level": (annotated(deployment(), log_level="trace"), ("tailscale-lifecycle/log-level", "trace")),
    "init-containers": (annotated(deployment(), init_containers="first"), (INIT_CONTAINERS, "first")),
    "login-server-argument": (annotated(deployment(), tailscale_args="--login-server=http://x"), (TAILSCALE_ARGS,)),
    "auth-key-argument": (annotated(deployment(), tailscale_args="--ssh --authkey x"), (TAILSCALE_ARGS,)),
    "line-break-in-arguments": (annotated(deployment(), tailscale_args="--ssh\n--qr"), (TAILSCALE_ARGS, "must be")),
    # The tailscale container splits its arguments at this space, too.
    "no-break-space-in-arguments": (
        annotated(deployment(), tailscale_args="--ssh\u00a0--hostname=x"),
        (TAILSCALE_ARGS, "must be"),
    ),
    "line-break-in-hostname": (annotated(deployment(), hostname="web\n"), (HOSTNAME, "must be")),
    # A long value must not hide what to do.
    "long-arguments": (
        annotated(deployment(), tailscale_args=f"--hostname=x {'a' * 6000}"),
        (TAILSCALE_ARGS, "Remove"),
    ),
    "host-network": (with_pod_fields(deployment(), hostNetwork=True), ("hostNetwork",)),
    "host-network-pod": (with_pod_fields(pod(), hostNetwork=True), ("hostNetwork",)),
    "own-tailscale": (with_pod_fields(deployment(), containers=_containers("web", "tailscale")), ('"tailscale"',)),
    "own-cleanup": (with_pod_fields(pod(), initContainers=_containers("cleanup")), ('"cleanup"',)),
    "own-dns-watch": (with_pod_fields(stateful_set(), containers=_containers("dns-watch")), ('"dns-watch"',)),
    "only-volume": (with_pod_fields(deployment(), volumes=[_KEY_VOLUME]), ("tailscale-lifecycle-auth", "part")),
    "only-token-volume": (
        with_pod_fields(deployment(), volumes=[{"name": "tailscale-lifecycle-token", "emptyDir": {}}]),
        ("tailscale-lifecycle-token", "part"),
    ),
    "volume-and-container": (
        with_pod_fields(pod(), volumes=[_KEY_VOLUME], initContainers=_containers("cleanup")),
        ("tailscale-lifecycle-auth, cleanup",),
    ),
    "port-of-dns-watch": (
        with_pod_fields(deployment(), containers=_containers("metrics", ports=[{"containerPort": 9003}])),
        ("metrics", "9003"),
    ),
    "port-of-tailscale-in-a-sidecar": (
        with_pod_fields(
            deployment(),
            initContainers=_containers("proxy", restartPolicy="Always", ports=[{"containerPort": 9002}]),
        ),
        ("proxy", "9002"),
    ),
    "two-replicas": (deployment(replicas=2), ("2 pods", HOSTNAME)),
    "three-replicas": (stateful_set(replicas=3), ("3 pods", HOSTNAME)),
    "parallel-job": (job(parallelism=4), ("4 pods",)),
    "parallel-cron-job": (cron_job(parallelism=4), ("4 pods",)),
    "pod-name-of-deployment": (annotated(deployment(), hostname="$(POD_NAME)"), (HOSTNAME, "$(POD_NAME)")),
    "shared-state": (
        annotated(stateful_set(replicas=2), hostname="$(POD_NAME)", state_secret="web"),
        (STATE_SECRET, "2 pods"),
    ),
    "daemon-set": (daemon_set(), ("DaemonSet", "$(NODE_NAME)")),
    "daemon-set-with-shared-state": (
        annotated(daemon_set(), hostname="web-$(NODE_NAME)", state_secret="web"),
        ("DaemonSet", STATE_SECRET),
    ),
}
"""The refused workloads by name, each with parts of the message, such as the annotation and the value."""

ACCEPTED: dict[str, Document] = {
    "deployment": deployment(),
    "stateful-set": stateful_set(),
    "ordinal": annotated(stateful_set(replicas=2), hostname="$(POD_NAME)"),
    "ordinal-and-state": annotated(stateful_set(replicas=2), hostname="$(POD_NAME)", state_secret="$(POD_NAME)-state"),
    "daemon-set": annotated(daemon_set(), hostname="web-$(NODE_NAME)"),
    "daemon-set-with-state": annotated(daemon_set(), hostname="web-$(NODE_NAME)", state_secret="web-$(NODE_NAME)"),
    "job": job(),
    "cron-job": cron_job(),
    "pod": pod(),
    "no-replicas": deployment(replicas=0),
    "longest-hostname": annotated(deployment(), hostname="w" * (63 - len(".example.com"))),
    "label-false": labelled(with_pod_fields(deployment(replicas=2), hostNetwork=True), inject="false"),
    "arguments": annotated(deployment(), tailscale_args="--ssh --hostname-like=x"),
}
"""The accepted workloads by name. The workload label-false is accepted without getting the containers."""
