"""Generate the Secret in which tailscale stores its state, and the Role that permits the pod to use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lifecycle.domain.errors import ManifestError
from lifecycle.inject.rules import STATE_SECRET, Workload


def state_objects(workload: Workload) -> Iterator[dict[str, Any]]:
    """Yield the Secrets, Role and RoleBinding of a workload.

    Raises:
        ManifestError: the namespace is missing or not a string, or the names of the Secrets cannot be determined.
    """
    rbac = "rbac.authorization.k8s.io"
    metadata = workload.manifest.get("metadata")
    namespace = metadata.get("namespace") if isinstance(metadata, dict) else None
    if not isinstance(namespace, str) or not namespace:
        raise ManifestError(
            "metadata.namespace is missing or not a string. Its RoleBinding needs it. Set it, or omit --state-secret."
        )
    secrets = list(_secret_names(workload))
    role = secrets[0] if len(secrets) == 1 else f"{workload.name}-tailscale"

    def new(version: str, kind: str, name: str, **fields: Any) -> dict[str, Any]:
        return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **fields}

    for secret in secrets:
        yield new("v1", "Secret", secret, type="Opaque")
    # RBAC cannot limit "create" to a name, so the pod may not create the Secret. The manifests contain it, empty.
    use_secrets = {
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": secrets,
        "verbs": ["get", "update", "patch"],
    }
    # tailscale reports in Events whether it could read and update the Secret.
    write_events = {"apiGroups": [""], "resources": ["events"], "verbs": ["get", "create", "patch"]}
    yield new(f"{rbac}/v1", "Role", role, rules=[use_secrets, write_events])
    account = workload.spec.get("serviceAccountName") or workload.spec.get("serviceAccount") or "default"
    yield new(
        f"{rbac}/v1",
        "RoleBinding",
        role,
        roleRef={"apiGroup": rbac, "kind": "Role", "name": role},
        subjects=[{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    )


def _secret_names(workload: Workload) -> Iterator[str]:
    secret = str(workload.annotations[STATE_SECRET])
    if "$(" not in secret:
        yield secret
        return
    if workload.kind != "StatefulSet" or "$(NODE_NAME)" in secret or "$(POD_NAMESPACE)" in secret:
        raise ManifestError(
            f"The annotation {STATE_SECRET} is {secret}, but --state-secret supports only $(POD_NAME), and only for a "
            "StatefulSet. Create the Secrets yourself, without --state-secret."
        )
    ordinals = workload.manifest["spec"].get("ordinals")
    start = ordinals.get("start") if isinstance(ordinals, dict) else None
    first = start if isinstance(start, int) else 0
    # Without pods, there is still one Secret: a Role without resourceNames would permit the use of every Secret.
    for number in range(first, first + max(workload.pod_count, 1)):
        yield secret.replace("$(POD_NAME)", f"{workload.name}-{number}")
