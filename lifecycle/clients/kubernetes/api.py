"""Read Secrets and pods from the Kubernetes API, and run commands in containers."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import httpx
import tenacity

from lifecycle.clients.http import HttpClient
from lifecycle.clients.kubernetes.access import UPSTREAM, Access
from lifecycle.clients.kubernetes.exec import Output, handshake_headers, read_output
from lifecycle.clients.response import Response, well_formed
from lifecycle.domain.errors import ApiError, AuthError, NotFoundError, ResponseError, TransientError

# A token consists of characters that are allowed in a header.
_TOKEN = re.compile(r"[\x21-\x7e]+")

# Finds the account in Kubernetes' message about a missing permission.
_USER = re.compile(r'User "([^"]+)"')


@dataclass(frozen=True, slots=True)
class RbacRule:
    """The RBAC rule that a request needs.

    Attributes:
        namespace: "" if the objects belong to no namespace.
        names: the names of the objects that the rule is limited to; empty = all objects.
        group: the API group of the resource; "" = the core group.
    """

    namespace: str
    resource: str
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()
    group: str = ""

    def advice(self, refusal: str) -> str:
        """Return the advice to add the rule.

        Args:
            refusal: Kubernetes' message about the missing permission. It contains the name of the account.
        """
        names = f" resourceNames: [{', '.join(self.names)}]," if self.names else ""
        rule = (
            f'- {{apiGroups: ["{self.group}"], resources: [{self.resource}],{names} verbs: [{", ".join(self.verbs)}]}}'
        )
        user = _USER.search(refusal)
        account = user[1] if user else "this account"
        role = f"Role in namespace {self.namespace}" if self.namespace else "ClusterRole"
        return f"Give {account} a {role} with this rule: {rule}"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod.

    Attributes:
        created_at: RFC 3339 in UTC with whole seconds, so that sorting these texts sorts the pods by age.
        containers: the names of the containers, in the order of the manifest.
        ready: True if the pod is running, ready, and not being deleted.
        keeps_its_name: True if the pod belongs to a StatefulSet, so that its replacement has the same name.
    """

    namespace: str
    name: str
    uid: str
    created_at: str
    containers: tuple[str, ...]
    ready: bool
    keeps_its_name: bool


class Cluster:
    """The Kubernetes API server of a cluster.

    Args:
        timeout: the limit for a whole request or command.
    """

    def __init__(self, access: Access, *, timeout: timedelta) -> None:
        self.access = access
        self.http = HttpClient(access.client, upstream=access.upstream, timeout=timeout, proxy=access.proxy)

    def secret(self, namespace: str, name: str) -> dict[str, bytes] | None:
        """Return a Secret's values by their keys; None if the Secret does not exist."""
        path = f"/api/v1/namespaces/{quote(namespace)}/secrets/{quote(name)}"
        try:
            secret = self.send("GET", path, RbacRule(namespace, "secrets", ("get",), (name,)))
        except NotFoundError:
            return None
        with well_formed(malformed(f"Secret {namespace}/{name}")):
            match secret:
                # A Secret is not recognized by `data`, because a Secret without values has no `data`.
                case {"kind": "Secret", "metadata": {"name": returned_name}} if returned_name == name:
                    data = secret.get("data") or {}
                    return {key: base64.b64decode(value, validate=True) for key, value in data.items()}
            raise ValueError("not this Secret")

    def headscale_api_key(self, namespace: str, reference: str) -> str:
        """Return Headscale's API key, which is stored in a Secret.

        Args:
            reference: `name/key`, or only the `name` of a Secret with one key.

        Raises:
            AuthError: the Secret does not contain one valid key.
        """
        name, _, key = reference.partition("/")
        values = self.secret(namespace, name)
        if values is None:
            problem = f"Secret {namespace}/{name} does not exist."
        elif not key and len(values) != 1:
            problem = f"Secret {namespace}/{name} has {len(values)} keys. Set {name}/KEY."
        elif key and key not in values:
            problem = f"Secret {namespace}/{name} has no key {key}. Its keys: {', '.join(sorted(values)) or 'none'}."
        else:
            api_key = (values[key] if key else next(iter(values.values()))).decode(errors="replace").strip()
            if _TOKEN.fullmatch(api_key):
                return api_key
            problem = f"Secret {namespace}/{reference} does not contain a valid token."
        raise AuthError(f"HEADSCALE_API_KEY_SECRET: {problem}", upstream=UPSTREAM)

    def tailscale_state(self, namespace: str, name: str, retrying: tenacity.Retrying) -> dict[str, bytes] | None:
        """Return the values of the Secret with the state of a tailscale container; None if it does not exist.

        Raises:
            TransientError: the Secret could not be read, even after all retries.
        """

        def read() -> dict[str, bytes] | None:
            try:
                return self.secret(namespace, name)
            except AuthError as error:
                # This is retried, because the Role with the permission is often created shortly after the pod.
                raise TransientError(str(error), upstream=error.upstream, status=error.status) from error

        return retrying(read)

    def pods(self, namespace: str, selector: str) -> list[Pod]:
        """Return the pods that match a label selector, in no particular order."""
        path = f"/api/v1/namespaces/{quote(namespace)}/pods"
        # The rule has no names of pods, because the request selects pods by their labels.
        rule = RbacRule(namespace, "pods", ("list",))
        pods = None
        # To callers, a NotFoundError would mean that a Headscale node is missing.
        with suppress(NotFoundError):
            pods = self.send("GET", path, rule, query={"labelSelector": selector})
        with well_formed(malformed(f"the pods in namespace {namespace}")):
            match pods:
                case {"kind": "PodList", "items": [*items]}:
                    return [_parse_pod(item) for item in items]
            raise ValueError("not a list of pods")

    def run(self, pod: Pod, container: str, command: Sequence[str]) -> Output:
        """Run a command in a container, without a shell, and wait until it ends. Return its output and exit status.

        Raises:
            TransientError: Kubernetes refused the command for a reason that can be temporary, or it is unknown whether
                the command started or how it ended.

        Source: GET …/pods/{name}/exec, whose connection becomes a websocket.
        """
        what = f"a command in container {container} of pod {pod.namespace}/{pod.name}"
        path = f"/api/v1/namespaces/{quote(pod.namespace)}/pods/{quote(pod.name)}/exec"
        query = {"container": container, "stdout": "true", "stderr": "true", "command": list(command)}
        headers = {**handshake_headers(), **self.access.authorization()}
        with self.http.stream("GET", path, what=what, params=query, headers=headers) as streamed:
            if streamed.status_code == httpx.codes.SWITCHING_PROTOCOLS:
                return read_output(streamed, what=what)
            response = self.http.read(streamed, what)
        # Up to Kubernetes 1.34, a websocket needs only the verb `get`. From 1.35 on, it needs `create`, too.
        names = (pod.name,) if pod.keeps_its_name else ()
        raise self._refused(what, response, RbacRule(pod.namespace, "pods/exec", ("create", "get"), names))

    def send(
        self,
        method: str,
        path: str,
        rule: RbacRule,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Send a request once, and return the JSON of the response.

        Raises:
            NotFoundError: Kubernetes itself reports that the object does not exist.
            ApiError: the request was refused, or its result is unknown.
        """
        what = f"{method} {path}"
        body_headers = {"Content-Type": "application/json"} if body else {}
        response = self.http.send(
            method,
            path,
            params=query,
            headers={"Accept": "application/json", **body_headers, **self.access.authorization()},
            content=json.dumps(body).encode() if body else None,
        )
        if response.status in (httpx.codes.OK, httpx.codes.CREATED):
            if not isinstance(response.json, dict):
                raise malformed(what)
            return response.json
        if response.status == httpx.codes.NOT_FOUND and _status(response).get("reason") == "NotFound":
            raise NotFoundError(f"Kubernetes: {what}: not found.{response.reason}", upstream=UPSTREAM)
        raise self._refused(what, response, rule)

    def _refused(self, what: str, response: Response, rule: RbacRule) -> ApiError:
        status = response.status
        message = str(_status(response).get("message") or "")
        if status == httpx.codes.UNAUTHORIZED:
            return AuthError(
                f"Kubernetes does not accept the credentials ({self.access.description}; {what}: {status}). Check that "
                f"the {self.access.credentials} belongs to this cluster.",
                upstream=UPSTREAM,
                status=status,
            )
        if status == httpx.codes.FORBIDDEN:
            if _status(response):
                text = f"Kubernetes refused {what}: a permission is missing. {rule.advice(message)}"
            else:
                via = self.http.endpoint.via
                text = f"Something in front of Kubernetes refused {what}{via} ({status}).{response.reason}"
            return AuthError(text, upstream=UPSTREAM, status=status)
        text = f"Kubernetes refused {what} ({status}).{response.reason}"
        is_throttled = status == httpx.codes.TOO_MANY_REQUESTS
        # For a command, 400 means that the pod has ended, or that the container "is not valid" (does not exist). 404
        # means that the pod was replaced after it was listed, or that a proxy responded.
        has_ended = status == httpx.codes.BAD_REQUEST and rule.resource == "pods/exec" and "is not valid" not in message
        if has_ended or is_throttled or status == httpx.codes.NOT_FOUND or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            return TransientError(text, upstream=UPSTREAM, status=status, retry_after=response.retry_after)
        return ResponseError(text, upstream=UPSTREAM, status=status)


def _parse_pod(item: Any) -> Pod:
    metadata = item["metadata"]
    status = item.get("status") or {}
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions") or ()}
    texts = metadata["namespace"], metadata["name"], metadata["uid"], metadata["creationTimestamp"]
    containers = tuple(container["name"] for container in item["spec"]["containers"])
    # If a value is not text, this raises an error.
    "".join((*texts, *containers)).encode()
    return Pod(
        *texts,
        containers,
        ready=status.get("phase") == "Running"
        and conditions.get("Ready") == "True"
        and metadata.get("deletionTimestamp") is None,
        keeps_its_name=any(owner["kind"] == "StatefulSet" for owner in metadata.get("ownerReferences") or ()),
    )


def _status(response: Response) -> dict[str, Any]:
    """Return the Status object of a refusal by Kubernetes; {} if something else refused the request."""
    body = response.json
    return body if isinstance(body, dict) and body.get("kind") == "Status" else {}


def malformed(what: str) -> ResponseError:
    """Return the error for a response that lacks required values."""
    return ResponseError(f"Malformed response of Kubernetes about {what}.", upstream=UPSTREAM)
