"""The few things we ask the Kubernetes API: one Secret, the pods of one selector, a command in one of them."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import Any, Self, TypeVar
from urllib.parse import quote

import tenacity
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException, list_kube_config_contexts, load_incluster_config, load_kube_config
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError
from websocket import WebSocketBadStatusException, WebSocketException
from yaml import YAMLError

from lifecycle.clients.http import MAX_ANSWER_BYTES
from lifecycle.clients.kubernetes.exec import UPSTREAM, Exec, Output
from lifecycle.domain.errors import ApiError, AuthError, ConfigError, ResponseError, TransientError
from lifecycle.runtime.background import in_background

Result = TypeVar("Result")

_OK = 200
_BAD_REQUEST = 400
_UNAUTHORIZED = 401
_FORBIDDEN = 403
_NOT_FOUND = 404
_TOO_MANY = 429
_SERVER_ERROR = 500

_PIECE_BYTES = 65_536

# What may stand in a header.
_TOKEN = re.compile(r"[\x21-\x7e]+")

# What else can be set, by the setting for which the Kubernetes API is needed.
_INSTEAD = {
    "HEADSCALE_ACCESS": "set HEADSCALE_URL and HEADSCALE_API_KEY",
    "HEADSCALE_API_KEY_SECRET": "set HEADSCALE_API_KEY or HEADSCALE_API_KEY_FILE instead",
    "NODE_POLICY": "set NODE_POLICY=replace",
}

# In a refusal by RBAC: who it is that may not.
_REFUSED_USER = re.compile(r'User "([^"]+)"')


@dataclass(frozen=True, slots=True)
class RbacRule:
    """What RBAC has to allow for one request.

    Attributes:
        names: the objects it is needed for; empty where it cannot be limited to some.
    """

    namespace: str
    resource: str
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The rule of a Role that gives it, as one line of YAML."""
        names = f" resourceNames: [{', '.join(self.names)}]," if self.names else ""
        return f'- {{apiGroups: [""], resources: [{self.resource}],{names} verbs: [{", ".join(self.verbs)}]}}'


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod, as far as we need to know it.

    Attributes:
        created_at: RFC 3339 in UTC, whole seconds: text that sorts as the instants do.
        containers: their names, in the order of the manifest.
        ready: it runs, is ready and was not told to go.
        keeps_its_name: it is a StatefulSet's, whose next pod has the same name.
    """

    namespace: str
    name: str
    uid: str
    created_at: str
    containers: tuple[str, ...]
    ready: bool
    keeps_its_name: bool


class Cluster:
    """A Kubernetes API server.

    Args:
        configuration: its address and our credentials.
        description: which one it is, for people.
        timeout: for one whole request, or one command.
    """

    def __init__(self, configuration: Configuration, *, description: str, timeout: timedelta) -> None:
        # No try but our own: the library's would lengthen the time-out unseen.
        configuration.retries = False
        self._configuration = configuration
        self._api = ApiClient(configuration)
        self._timeout_s = timeout.total_seconds()
        # For each step on the way. Longer than for all of it, so that there is one way to run out of time; this one
        # ends the thread that nobody waits for any more.
        self._step_timeout_s = 2 * self._timeout_s
        self.description = description

    def __enter__(self) -> Self:
        """Use it until the block ends."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close its connections."""
        self._api.close()

    def secret(self, namespace: str, name: str) -> dict[str, bytes] | None:
        """A Secret's values by their keys; None when there is no such Secret.

        Raises:
            AuthError: we may not read it.
            TransientError: it could not be found out whether it is there.
        """
        rule = RbacRule(namespace, "secrets", ("get",), (name,))
        answer = self._get(f"/api/v1/namespaces/{quote(namespace)}/secrets/{quote(name)}", {}, rule)
        try:
            match answer:
                case None:
                    return None
                # One without values has no `data`: so that nothing else passes for it, it has to say what it is.
                case {"kind": "Secret", "metadata": {"name": found}} if found == name:
                    data = answer.get("data") or {}
                    return {key: base64.b64decode(value, validate=True) for key, value in data.items()}
        except (AttributeError, TypeError, binascii.Error):
            pass
        # Not chained: a value stands in the error.
        raise _no_sense(f"Secret {namespace}/{name}")

    def token(self, namespace: str, reference: str) -> str:
        """A token that stands in a Secret.

        Args:
            reference: the Secret's `name`, where it has one value, or `name/key`.

        Raises:
            AuthError: there is none; the message begins with the setting that names it.
        """
        name, _, key = reference.partition("/")
        values = self.secret(namespace, name)
        problem = ""
        if values is None:
            problem = f"there is no Secret {namespace}/{name}"
        elif not key and len(values) != 1:
            problem = f"Secret {namespace}/{name} has not one value but {len(values)}; write {name}/KEY"
        elif key and key not in values:
            problem = f"Secret {namespace}/{name} has no key {key}, only: {', '.join(sorted(values)) or 'none'}"
        else:
            token = (values[key] if key else next(iter(values.values()))).decode(errors="replace").strip()
            if _TOKEN.fullmatch(token):
                return token
            problem = f"what stands in Secret {namespace}/{reference} is not a token"
        raise AuthError(f"HEADSCALE_API_KEY_SECRET: {problem}", upstream=UPSTREAM)

    def pods(self, namespace: str, selector: str) -> list[Pod]:
        """The pods that a label selector finds, in no particular order.

        Raises:
            AuthError: we may not list pods.
        """
        rule = RbacRule(namespace, "pods", ("list",))
        answer = self._get(f"/api/v1/namespaces/{quote(namespace)}/pods", {"labelSelector": selector}, rule)
        try:
            match answer:
                case {"kind": "PodList", "items": [*items]}:
                    return [_parse_pod(item) for item in items]
        except (AttributeError, KeyError, TypeError):
            pass
        raise _no_sense(f"the pods in namespace {namespace}")

    def run(self, pod: Pod, container: str, command: Sequence[str]) -> Output:
        """Run a command in a container, without a shell, and wait for its end.

        Returns:
            Also when its exit status is not 0.

        Raises:
            AuthError: we may not run commands there.
            TransientError: it is not known how it ended, or whether it began.

        Source: GET …/pods/{name}/exec, upgraded to a websocket.
        """
        # Up to Kubernetes 1.34 a websocket needs only `get`, from 1.35 on `create` too.
        names = (pod.name,) if pod.keeps_its_name else ()
        rule = RbacRule(pod.namespace, "pods/exec", ("create", "get"), names)
        what = f"a command in container {container} of pod {pod.namespace}/{pod.name}"
        path = f"/api/v1/namespaces/{quote(pod.namespace)}/pods/{quote(pod.name)}/exec"
        query = [("container", container), ("stdout", "true"), ("stderr", "true")]
        query += [("command", argument) for argument in command]
        running = Exec(self._configuration, timeout_s=self._step_timeout_s)

        def work() -> Output:
            try:
                url, headers = self._address(path, query)
                return running.run(url, headers)
            except WebSocketBadStatusException as error:
                raise self._refused(what, error.status_code, _status(error.resp_body), rule) from None
            except (WebSocketException, OSError) as error:
                raise _lost(what, error) from error

        return self._in_time(what, work, give_up=running.abort)

    def _get(self, path: str, query: Mapping[str, str], rule: RbacRule) -> dict[str, Any] | None:
        """Send a GET and give its JSON; None when Kubernetes itself says that there is no such thing."""
        what = f"GET {path}"

        def work() -> dict[str, Any] | None:
            try:
                url, headers = self._address(path, list(query.items()))
                response = self._api.call_api("GET", url, headers, _request_timeout=self._step_timeout_s)
                body = self._body(what, response.response)
            except (HTTPError, ApiException, OSError, ValueError) as error:
                raise _lost(what, error) from error
            said = _json_object(body)
            if response.status == _OK:
                if said is None:
                    raise _no_sense(what)
                return said
            refusal = _status(body)
            if response.status == _NOT_FOUND and refusal.get("reason") == "NotFound":
                return None
            raise self._refused(what, response.status, refusal, rule)

        return self._in_time(what, work)

    def _body(self, what: str, response: BaseHTTPResponse) -> bytes:
        """Read an answer in pieces: neither one without end nor one that drips holds a thread, or fills the memory."""
        deadline = monotonic() + self._timeout_s
        received = bytearray()
        try:
            # What is there by now; `stream` would wait for a whole piece.
            while piece := response.read1(_PIECE_BYTES):
                received += piece
                if len(received) > MAX_ANSWER_BYTES:
                    raise ResponseError(
                        f"Kubernetes: the answer to {what} is larger than {MAX_ANSWER_BYTES >> 20} MiB",
                        upstream=UPSTREAM,
                    )
                if monotonic() > deadline:
                    raise TransientError(
                        f"Kubernetes did not end its answer to {what} within {self._timeout_s:g} s", upstream=UPSTREAM
                    )
        finally:
            # What was not read to its end cannot be used again.
            response.close()
        return bytes(received)

    def _address(self, path: str, query: Sequence[tuple[str, str]]) -> tuple[str, dict[str, str]]:
        """The whole address of a request, and its headers with our credentials."""
        try:
            _, url, headers, _, _ = self._api.param_serialize(
                "GET",
                path,
                query_params=list(query),
                header_params={"Accept": "application/json"},
                auth_settings=["BearerToken"],
            )
        except (ConfigException, OSError) as error:
            # It is read anew every minute, since it is rotated.
            raise TransientError(
                f"the service account's token could not be read: {error}", upstream=UPSTREAM
            ) from error
        return url, headers

    def _in_time(self, what: str, work: Callable[[], Result], *, give_up: Callable[[], None] = lambda: None) -> Result:
        """Do it in a thread: the libraries can be told a time for each step and each read, and none for all.

        Args:
            what: for the message.
            work: raises ApiError.
            give_up: makes work end that took too long.
        """
        try:
            return in_background(work, name="kubernetes").result(self._timeout_s)
        except TimeoutError:
            give_up()
            raise TransientError(
                f"Kubernetes did not answer {what} within {self._timeout_s:g} s", upstream=UPSTREAM
            ) from None

    def _refused(self, what: str, status: int, refusal: Mapping[str, Any], rule: RbacRule) -> ApiError:
        message = str(refusal.get("message") or "")
        if status == _UNAUTHORIZED:
            return AuthError(
                f"Kubernetes does not accept our credentials ({self.description}; {what}: {status}); is the service "
                "account's token the cluster's own?",
                upstream=UPSTREAM,
                status=status,
            )
        if status == _FORBIDDEN:
            user = _REFUSED_USER.search(message)
            return AuthError(
                f"Kubernetes refused {what}, since a right is missing; give {user[1] if user else 'our account'} a "
                f"Role in namespace {rule.namespace} with this rule: {rule.text}",
                upstream=UPSTREAM,
                status=status,
            )
        text = f"Kubernetes could not do {what}: {status} {message}".rstrip()
        leaving = status == _BAD_REQUEST and rule.resource == "pods/exec" and "is not valid" not in message
        if leaving or status in (_NOT_FOUND, _TOO_MANY) or status >= _SERVER_ERROR:
            # A 404 is a pod that was replaced since it was listed, or a proxy's; a 400, one that has ended by now.
            return TransientError(text, upstream=UPSTREAM, status=status, throttled=status == _TOO_MANY)
        return ResponseError(text, upstream=UPSTREAM, status=status)


class StateSecret:
    """The Secret in which a tailscale container keeps its node's state.

    Args:
        retrying: the policy for reading it.
    """

    def __init__(self, cluster: Cluster, *, namespace: str, name: str, retrying: tenacity.Retrying) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._retrying = retrying

    def read(self) -> dict[str, bytes] | None:
        """Its values by their keys; None when there is no such Secret.

        Raises:
            TransientError: that could not be found out, after all tries.
        """
        return self._retrying(self._read)

    def _read(self) -> dict[str, bytes] | None:
        try:
            return self._cluster.secret(self._namespace, self._name)
        except AuthError as error:
            # A right is often given a moment after the pod was made.
            raise TransientError(str(error), upstream=error.upstream, status=error.status) from error


def in_cluster(*, needed_for: str, timeout: timedelta) -> Cluster:
    """The cluster that this pod runs in, as its service account.

    Args:
        needed_for: the setting without which it would not be needed.
        timeout: for one whole request, or one command.

    Raises:
        ConfigError: this is no pod, or its service account's token is not mounted.
    """
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)
    except (ConfigException, OSError) as error:
        raise ConfigError(
            f"{needed_for}: the Kubernetes API is needed for it, and cannot be reached from here ({error}); in a pod, "
            "mount its service account's token (automountServiceAccountToken); elsewhere only --dry-run uses a "
            f"kubeconfig. Or {_INSTEAD[needed_for]}"
        ) from error
    return Cluster(configuration, description=f"in-cluster, {configuration.host}", timeout=timeout)


def in_cluster_or_kubeconfig(*, needed_for: str, timeout: timedelta) -> Cluster:
    """The cluster that this pod runs in; outside of one, that of the kubeconfig's current context.

    Raises:
        ConfigError: there is neither.
    """
    try:
        return in_cluster(needed_for=needed_for, timeout=timeout)
    except ConfigError as not_in_cluster:
        configuration = Configuration()
        try:
            _, context = list_kube_config_contexts()
            # Nor is the kubeconfig written, as it would be with a token that was refreshed.
            load_kube_config(client_configuration=configuration, persist_config=False)
        except (ConfigException, OSError) as error:
            raise ConfigError(f"{not_in_cluster}; nor is there a kubeconfig that can be used ({error})") from error
        except (YAMLError, AttributeError, KeyError, TypeError, ValueError):
            # Not chained: its text stands in the error, and keys in its text.
            raise ConfigError("the kubeconfig (KUBECONFIG, or ~/.kube/config) makes no sense") from None
        if not configuration.verify_ssl:
            raise ConfigError(
                f"context {context['name']} of the kubeconfig says insecure-skip-tls-verify: credentials are sent to "
                "nobody who cannot be told from others; give it certificate-authority instead"
            ) from None
        description = f"context {context['name']} of the kubeconfig, {configuration.host}"
        return Cluster(configuration, description=description, timeout=timeout)


def _parse_pod(item: Any) -> Pod:
    metadata = item["metadata"]
    status = item.get("status") or {}
    conditions = {condition["type"]: condition["status"] for condition in status.get("conditions") or ()}
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        created_at=metadata["creationTimestamp"],
        containers=tuple(container["name"] for container in item["spec"]["containers"]),
        ready=status.get("phase") == "Running"
        and conditions.get("Ready") == "True"
        and metadata.get("deletionTimestamp") is None,
        keeps_its_name=any(owner["kind"] == "StatefulSet" for owner in metadata.get("ownerReferences") or ()),
    )


def _json_object(body: bytes | None) -> dict[str, Any] | None:
    try:
        value = json.loads(body or b"")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _status(body: bytes | None) -> dict[str, Any]:
    """What Kubernetes itself says about a refusal; {} when it was not Kubernetes."""
    said = _json_object(body)
    return said if said is not None and said.get("kind") == "Status" else {}


def _lost(what: str, error: Exception) -> TransientError:
    cause = str(error) or type(error).__name__
    return TransientError(f"Kubernetes could not be reached for {what}: {cause}", upstream=UPSTREAM)


def _no_sense(what: str) -> ResponseError:
    return ResponseError(f"the answer about {what} is not what Kubernetes says", upstream=UPSTREAM)
