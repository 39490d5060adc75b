"""Write Kubernetes Events about the pod that this program runs in.

Source: Kubernetes API, events.k8s.io/v1 Event and authentication.k8s.io/v1 SelfSubjectReview.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final
from uuid import uuid4

from lifecycle.clients.kubernetes.access import UPSTREAM
from lifecycle.clients.kubernetes.api import Cluster, RbacRule, malformed
from lifecycle.clients.response import well_formed
from lifecycle.domain.errors import AuthError
from lifecycle.domain.pod_events import PodEvent

_CONTROLLER: Final = "tailscale-lifecycle"
_GROUP: Final = "events.k8s.io"
# The name of an Event has at most 253 characters: up to 236 of the pod's name, a dot, and 16 random characters.
_MAX_POD_NAME: Final = 236
# `reportingInstance` has at most this number of characters.
_MAX_INSTANCE: Final = 128
# The start of the keys in `extra` of a SelfSubjectReview that describe the pod of the token.
_POD_KEY: Final = "authentication.kubernetes.io/pod-"


class EventWriter(Cluster):
    """A `Cluster` that also writes Events about this pod."""

    def create_event(self, event: PodEvent, now: datetime) -> None:
        """Create an Event.

        Raises:
            ApiError: the Event was not created, or it is unknown whether it was created.
        """
        pod = self._pod
        name = f"{pod['name'][:_MAX_POD_NAME]}.{uuid4().hex[:16]}"
        body = {
            "apiVersion": f"{_GROUP}/v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": pod["namespace"]},
            "eventTime": f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%fZ}",
            "type": event.type,
            "reason": event.reason,
            "note": event.note,
            "action": "Reconcile",
            "regarding": pod,
            "reportingController": _CONTROLLER,
            "reportingInstance": pod["name"][:_MAX_INSTANCE],
        }
        rule = RbacRule(pod["namespace"], "events", ("create",), group=_GROUP)
        self.send("POST", f"/apis/{_GROUP}/v1/namespaces/{pod['namespace']}/events", rule, body=body)

    @cached_property
    def _pod(self) -> dict[str, str]:
        """The reference to this pod, which the API server knows because the token was issued for the pod.

        Raises:
            AuthError: the token was not issued for a pod.
        """
        rule = RbacRule("", "selfsubjectreviews", ("create",), group="authentication.k8s.io")
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        review = self.send("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", rule, body=body)
        with well_formed(malformed("the service account")):
            user: Any = review["status"]["userInfo"]
            extra = user.get("extra") or {}
            if f"{_POD_KEY}uid" not in extra:
                raise AuthError(
                    f"KUBERNETES_EVENTS: the credentials of {user['username']} are not those of a pod. Mount a "
                    "projected service account token.",
                    upstream=UPSTREAM,
                )
            # system:serviceaccount:NAMESPACE:NAME
            _, _, namespace, _ = user["username"].split(":")
            names = {key: ", ".join(extra[f"{_POD_KEY}{key}"]) for key in ("name", "uid")}
        return {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, **names}
