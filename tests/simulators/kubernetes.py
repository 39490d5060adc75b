"""A simulated Kubernetes API with RBAC: Secrets, Events, pods, and commands in the containers of pods (exec).

The output of a command is sent over a websocket with version 4 or 5 of the Kubernetes subprotocol for exec.
"""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import count
from typing import Any, Final, NoReturn
from urllib.parse import parse_qs

import httpx

from tests.simulators.faults import TIMED_OUT, FaultQueue, apply_fault, reset
from tests.simulators.headscale_cli import Finished, Program
from tests.simulators.kubernetes_events import Events, RefusedError
from tests.simulators.messages import MemoryConnection, Request, Response, json_response
from tests.simulators.upstream import Upstream
from tests.simulators.websocket import CLOSING, PING, close, frame, read_pong, upgrade_headers

# The subprotocols of websockets for exec.
V4: Final = "v4.channel.k8s.io"
V5: Final = "v5.channel.k8s.io"

# Channels of the subprotocol. The first byte of each message is its channel.
STDOUT: Final = 1
STDERR: Final = 2
ERROR: Final = 3
CLOSE_CHANNEL: Final = 255

SERVICE_ACCOUNT: Final = "system:serviceaccount:default:grafana"

_MAX_MESSAGE_BYTES: Final = 32 * 1024
"""The size of the kubelet's buffer. The kubelet splits longer output into several messages."""

_PING: Final = b"ping"


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedPod:
    """A pod.

    Attributes:
        containers: maps the name of each container to the programs in it by name.
        owner: the kind of the pod's controller, such as `StatefulSet`.
        labels: by default, the label by which `lifecycle` finds Headscale's pod.
        is_terminating: True if the pod has been deleted, and its containers are being stopped.
    """

    name: str
    uid: str
    created_at: datetime
    containers: Mapping[str, Mapping[str, Program]]
    namespace: str = "headscale"
    labels: Mapping[str, str] = field(default_factory=lambda: {"app.kubernetes.io/name": "headscale"})
    owner: str = "StatefulSet"
    ready: bool = True
    phase: str = "Running"
    is_terminating: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the part of the pod's JSON that `lifecycle` reads."""
        metadata: dict[str, Any] = {
            "name": self.name,
            "namespace": self.namespace,
            "uid": self.uid,
            "creationTimestamp": f"{self.created_at:%Y-%m-%dT%H:%M:%SZ}",
            "labels": dict(self.labels),
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": self.owner, "name": "headscale"}],
        }
        if self.is_terminating:
            metadata["deletionTimestamp"] = metadata["creationTimestamp"]
        return {
            "metadata": metadata,
            "spec": {"containers": [{"name": name, "image": name} for name in self.containers]},
            "status": {
                "phase": self.phase,
                "conditions": [{"type": "Ready", "status": "True" if self.ready else "False"}],
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecFault:
    """A fault of a command after its connection has been established.

    Attributes:
        before: bytes that are sent before the command's standard output.
        instead: the result that is sent without running the command; None = the command is run.
        sent_bytes: how many bytes of standard output are sent before the connection is reset; None = it is not reset.
        status: what is sent instead of the exit status; None = the exit status is sent.
        hang: True if the command is run, but nothing is sent until the client closes the connection.
        stall: True if only half of a frame is sent, and then nothing until the client closes the connection.
        start_error: why the container runtime cannot start the command; "" = the command can be started.
    """

    before: bytes = b""
    instead: Finished | None = None
    sent_bytes: int | None = None
    status: bytes | None = None
    hang: bool = False
    stall: bool = False
    start_error: str = ""


@dataclass(slots=True)
class _Rule:
    """A rule of a Role."""

    namespace: str
    groups: Sequence[str]
    resources: Sequence[str]
    verbs: Sequence[str]
    names: Sequence[str] = field(default_factory=tuple)

    def allows(self, verb: str, resource: str, namespace: str, name: str | None, group: str = "") -> bool:
        return (
            self.namespace == namespace
            and group in self.groups
            and resource in self.resources
            and verb in self.verbs
            # A rule with resource names does not allow lists.
            and (not self.names or name in self.names)
        )


class KubernetesSimulator(Upstream):
    """An API server and one service account.

    Args:
        minor: the minor version of Kubernetes. From 1.35 on, exec over a websocket also needs the permission `create`.
        subprotocols: the subprotocols for exec that the server supports.
        now: returns the time for the Date header of responses, in UTC; None = the header is not sent.

    Attributes:
        token: the token of the service account.
        account: the name of the service account.
        events: the Events.
        token_pod: the name and uid of the pod to which the token is bound; None = it is not bound to a pod.
        used_subprotocols: the subprotocol of each command that was accepted, oldest first.
    """

    def __init__(
        self,
        *,
        minor: int = 35,
        subprotocols: Sequence[str] = (V5, V4),
        now: Callable[[], datetime] | None = None,
    ) -> None:
        super().__init__()
        self._now = now
        self.minor = minor
        self.subprotocols = subprotocols
        self.token = "eyJhbGciOiJSUzI1NiJ9.token-0.signature"
        self.account = SERVICE_ACCOUNT
        self.events = Events()
        self.token_pod: tuple[str, str] | None = ("grafana-0", "00000000-0000-4000-8000-000000000000")
        self.used_subprotocols: list[str] = []
        self._secrets: dict[tuple[str, str], dict[str, str]] = {}
        self._pods: list[SimulatedPod] = []
        self._rules: list[_Rule] = []
        self._exec_faults: FaultQueue[ExecFault] = FaultQueue()
        self._numbers = count(1)

    # --- Actions of a test --------------------------------------------------------------------------

    def rotate_token(self) -> str:
        """Replace the accepted token, and return the new one."""
        with self.lock:
            self.token = f"eyJhbGciOiJSUzI1NiJ9.token-{next(self._numbers)}.signature"
            return self.token

    def put_secret(self, namespace: str, name: str, values: Mapping[str, str]) -> None:
        """Create or replace a Secret."""
        with self.lock:
            self._secrets[namespace, name] = dict(values)

    def delete_secret(self, namespace: str, name: str) -> None:
        """Delete a Secret."""
        with self.lock:
            del self._secrets[namespace, name]

    def add_pod(
        self,
        name: str,
        containers: Mapping[str, Mapping[str, Program]],
        *,
        age: timedelta = timedelta(hours=1),
        **attributes: Any,
    ) -> SimulatedPod:
        """Add a pod with these attributes of `SimulatedPod`."""
        uid = f"00000000-0000-4000-8000-{next(self._numbers):012d}"
        pod = SimulatedPod(name=name, uid=uid, created_at=datetime.now(UTC) - age, containers=containers, **attributes)
        with self.lock:
            self._pods.append(pod)
        return pod

    def change_pod(self, pod: SimulatedPod, **changes: Any) -> SimulatedPod:
        """Change attributes of a pod, such as `ready`, and return the changed pod."""
        changed = replace(pod, **changes)
        with self.lock:
            self._pods[self._pods.index(pod)] = changed
        return changed

    def delete_pod(self, pod: SimulatedPod) -> None:
        """Remove a pod."""
        with self.lock:
            self._pods.remove(pod)

    def allow(self, namespace: str, *rules: Mapping[str, Any]) -> None:
        """Give the service account the rules of a Role, in the format of a manifest."""
        with self.lock:
            for rule in rules:
                names = rule.get("resourceNames", ())
                self._rules.append(_Rule(namespace, rule["apiGroups"], rule["resources"], rule["verbs"], names))

    def allow_nothing(self) -> None:
        """Remove all permissions."""
        with self.lock:
            self._rules.clear()

    def add_exec_fault(self, fault: ExecFault, command: str = "", *, times: int | None = 1) -> None:
        """Inject a fault into a command.

        Args:
            command: regular expression that is searched in the command, whose words are joined by spaces.
            times: how many commands are affected; None = all.
        """
        self._exec_faults.add(fault, path=command, times=times)

    @property
    def pods(self) -> list[SimulatedPod]:
        """Every pod, oldest first."""
        with self.lock:
            return list(self._pods)

    @property
    def commands(self) -> list[str]:
        """All requested commands, with their words joined by spaces."""
        with self.lock:
            return [
                " ".join(parse_qs(exchange.query)["command"])
                for exchange in self.requests
                if exchange.path.endswith("/exec")
            ]

    # --- From request to response -------------------------------------------------------------------

    def handle(self, request: Request) -> Response:
        """Serve one request. The connection of a request for exec is upgraded to a websocket."""
        return self._serve_exec(request) if request.path.endswith("/exec") else super().handle(request)

    def answer(self, request: Request, *, from_previous_state: bool) -> Response:
        """Execute one request, always in the current state. The caller holds the lock."""
        try:
            response = self._answer(request)
        except RefusedError as error:
            response = error.response()
        if self._now is not None:
            response.headers["date"] = format_datetime(self._now(), usegmt=True)
        return response

    def _answer(self, request: Request) -> Response:
        self._check_token(request)
        match request.path.strip("/").split("/"):
            case ["api", "v1", "namespaces", namespace, "secrets", name] if request.method == "GET":
                self._check_permission("get", "secrets", namespace, name)
                return self._secret(namespace, name)
            case ["api", "v1", "namespaces", namespace, "secrets", name] if request.method == "PATCH":
                self._check_permission("patch", "secrets", namespace, name)
                self._patch_secret(self._secrets.get((namespace, name)), json.loads(request.body))
                return self._secret(namespace, name)
            case ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"] if request.method == "POST":
                access = json.loads(request.body)["spec"]["resourceAttributes"]
                requested = access["verb"], access["resource"], access["namespace"], access.get("name")
                allowed = any(rule.allows(*requested, access.get("group", "")) for rule in self._rules)
                return json_response({"status": {"allowed": allowed}}, 201)
            case ["apis", "authentication.k8s.io", *_] | ["apis", "events.k8s.io", *_]:
                return self._answer_for_events(request)
            case ["api", "v1", "namespaces", namespace, "pods"] if request.method == "GET":
                self._check_permission("list", "pods", namespace, None)
                return self._list_pods(namespace, request.parameters.get("labelSelector", ""))
        raise RefusedError(404, "the server could not find the requested resource")

    def _answer_for_events(self, request: Request) -> Response:
        """Execute a request that is needed to write Events."""
        match request.method, *request.path.strip("/").split("/"):
            case ["POST", "apis", "authentication.k8s.io", "v1", "selfsubjectreviews"]:
                return json_response({"kind": "SelfSubjectReview", "status": {"userInfo": self._user()}}, 201)
            case ["POST", "apis", "events.k8s.io", "v1", "namespaces", namespace, "events"]:
                self._check_permission("create", "events", namespace, None, "events.k8s.io")
                return json_response(self.events.create(namespace, _json_body(request)), 201)
        raise RefusedError(404, "the server could not find the requested resource")

    def _user(self) -> dict[str, Any]:
        """Return the user of a SelfSubjectReview."""
        extra = {}
        if self.token_pod is not None:
            name, uid = self.token_pod
            prefix = "authentication.kubernetes.io/pod-"
            extra = {f"{prefix}name": [name], f"{prefix}uid": [uid]}
        return {"username": self.account, "groups": ["system:serviceaccounts"], "extra": extra}

    def _check_token(self, request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or token != self.token:
            raise RefusedError(401, "Unauthorized")

    def _check_permission(self, verb: str, resource: str, namespace: str, name: str | None, group: str = "") -> None:
        if not any(rule.allows(verb, resource, namespace, name, group) for rule in self._rules):
            plural, _, _ = resource.partition("/")
            object_name = f'{plural} "{name}"' if name else plural
            raise RefusedError(
                403,
                f'{object_name} is forbidden: User "{self.account}" cannot {verb} resource "{resource}" in API group '
                f'"{group}" in the namespace "{namespace}"',
            )

    def _secret(self, namespace: str, name: str) -> Response:
        values = self._secrets.get((namespace, name))
        if values is None:
            raise RefusedError(404, f'secrets "{name}" not found')
        body: dict[str, Any] = {
            "kind": "Secret",
            "apiVersion": "v1",
            "metadata": {"name": name, "namespace": namespace},
            "type": "Opaque",
        }
        if values:
            body["data"] = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        return json_response(body)

    @staticmethod
    def _patch_secret(values: dict[str, str] | None, patch: Any) -> None:
        """Apply a strategic merge patch or a JSON patch, as the tailscale container sends them."""
        if values is None:
            raise RefusedError(404, "secret not found")
        if isinstance(patch, dict):
            changes = patch.get("data") or {}
        else:
            changes = {}
            for step in patch:
                _, _, key = step["path"].removeprefix("/data").partition("/")
                changes |= {key: step.get("value")} if key else step["value"]
        for key, value in changes.items():
            values.pop(key, None)
            if value is not None:
                values[key] = base64.b64decode(value).decode()

    def _list_pods(self, namespace: str, selector: str) -> Response:
        labels = dict(label.split("=", 1) for label in selector.split(",") if label)
        items = [
            pod.to_json() for pod in self._pods if pod.namespace == namespace and labels.items() <= pod.labels.items()
        ]
        body = {"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items}
        return json_response(body)

    # --- A command in a container -------------------------------------------------------------------

    def _serve_exec(self, request: Request) -> Response:
        status: int | None = None
        try:
            fault = self.faults.take(request.method, request.target)
            if fault is not None:
                # The command is not run. A fault such as `truncate` gets a response with status 500 to change.
                response = apply_fault(fault, self.faults, request, lambda _from_previous_state: Response(status=500))
                status = response.status
                return response
            try:
                program, subprotocol = self._accept(request)
            except RefusedError as error:
                status = error.status
                return error.response()
            status = 101
        finally:
            self.record(request, status)
        return self._run(request, program, subprotocol)

    def _accept(self, request: Request) -> tuple[Program | None, str]:
        """Return the program to run and the subprotocol. The program is None if the container does not have it.

        Raises:
            RefusedError: the API server refuses the request.
        """
        with self.lock:
            self._check_token(request)
            *_, namespace, _, name, _ = request.path.split("/")
            self._check_permission("get", "pods/exec", namespace, name)
            if self.minor >= 35:
                self._check_permission("create", "pods/exec", namespace, name)
            pod = next((pod for pod in self._pods if (pod.namespace, pod.name) == (namespace, name)), None)
            if pod is None:
                raise RefusedError(404, f'pods "{name}" not found')
            if pod.phase in ("Succeeded", "Failed"):
                raise RefusedError(
                    400, f"cannot exec into a container in a completed pod; current phase is {pod.phase}"
                )
            if not (_is_requested(request, "stdout") or _is_requested(request, "stderr")):
                raise RefusedError(400, "you must specify at least one of stdin, stdout, stderr")
            container = request.parameters.get("container", next(iter(pod.containers)))
            if container not in pod.containers:
                raise RefusedError(400, f"container {container} is not valid for pod {name}")
            offered = request.headers.get("sec-websocket-protocol", "").replace(" ", "").split(",")
            subprotocol = next((subprotocol for subprotocol in offered if subprotocol in self.subprotocols), None)
            if request.headers.get("upgrade", "").lower() != "websocket" or subprotocol is None:
                raise RefusedError(400, "unable to upgrade: unknown subprotocol")
            self.used_subprotocols.append(subprotocol)
            command = request.parameters.all("command")[0]
            return pod.containers[container].get(command), subprotocol

    def _run(self, request: Request, program: Program | None, subprotocol: str) -> Response:
        """Run the program, and send its output over a websocket."""
        # The first message on each channel is empty.
        opening = b"".join(frame(bytes([channel])) for channel in (STDOUT, STDERR, ERROR)) + frame(_PING, PING)
        output, failure = self._output(request, program, subprotocol)
        headers = upgrade_headers(request.headers["sec-websocket-key"], subprotocol)
        if request.connection is not None:
            self._send(request.connection, headers, opening, output, failure)
        connection = MemoryConnection(opening + output + (b"" if failure else CLOSING), failure)
        return Response(status=101, headers=headers, connection=connection)

    def _send(
        self,
        connection: socket.socket,
        headers: Mapping[str, str],
        opening: bytes,
        output: bytes,
        failure: httpx.TransportError | None,
    ) -> NoReturn:
        """Send a response over a real connection."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        connection.sendall(f"HTTP/1.1 101 Switching Protocols\r\n{lines}\r\n".encode() + opening)
        if read_pong(connection) != _PING:
            _end("the client did not answer the ping")
        connection.sendall(output)
        if isinstance(failure, httpx.ReadTimeout):
            # Wait until the client has closed the connection.
            connection.settimeout(60)
            while connection.recv(4096):
                pass
            _end("the client gave up")
        if failure is not None:
            reset(connection)
            _end("the simulator reset the connection")
        close(connection)
        _end("the command has ended")

    def _output(
        self, request: Request, program: Program | None, subprotocol: str
    ) -> tuple[bytes, httpx.TransportError | None]:
        """Return the frames that are sent after the ping, and the error of the connection after them, if any."""
        argv = request.parameters.all("command")
        fault = self._exec_faults.take(request.method, " ".join(argv)) or ExecFault()
        if program is None:
            fault = ExecFault(start_error=f'exec: "{argv[0]}": executable file not found in $PATH: unknown')
        finished = fault.instead or (program(argv) if program and not fault.start_error else Finished())
        stdout = fault.before + finished.stdout
        if fault.hang or fault.stall:
            half = frame(bytes([STDOUT]) + stdout)[: len(stdout) // 2]
            return half if fault.stall else b"", httpx.ReadTimeout(TIMED_OUT)
        if fault.sent_bytes is not None:
            return _messages(STDOUT, stdout[: fault.sent_bytes]), httpx.ReadError(
                "[Errno 104] Connection reset by peer"
            )
        # Only the requested streams are sent.
        output = _messages(STDOUT, stdout) if _is_requested(request, "stdout") else b""
        output += _messages(STDERR, finished.stderr) if _is_requested(request, "stderr") else b""
        if subprotocol == V5:
            output += frame(bytes([CLOSE_CHANNEL, STDOUT])) + frame(bytes([CLOSE_CHANNEL, STDERR]))
        status = _start_failure(fault.start_error) if fault.start_error else _exit_status(finished.exit_status)
        output += _messages(ERROR, json.dumps(status).encode() if fault.status is None else fault.status)
        return output, None


def _messages(channel: int, data: bytes) -> bytes:
    """Return the frames with which data is sent on a channel."""
    parts = (data[start : start + _MAX_MESSAGE_BYTES] for start in range(0, len(data), _MAX_MESSAGE_BYTES))
    return b"".join(frame(bytes([channel]) + part) for part in parts)


def _json_body(request: Request) -> dict[str, Any]:
    """Return the body of a request. Refuse the request if it has another content type."""
    if request.headers.get("content-type") != "application/json":
        raise RefusedError(415, "the body of the request was in an unknown format")
    body: dict[str, Any] = request.json()
    return body


def _is_requested(request: Request, stream: str) -> bool:
    return request.parameters.get(stream) in ("true", "1")


def _end(reason: str) -> NoReturn:
    """Let the HTTP server close this connection without a response, because the connection is a websocket now."""
    raise ConnectionAbortedError(reason)


def _exit_status(exit_status: int) -> dict[str, Any]:
    """Return the `Status` object of a command that has ended."""
    if exit_status == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {exit_status}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(exit_status)}]},
    }


def _start_failure(reason: str) -> dict[str, Any]:
    """Return the `Status` object of a command that could not be started."""
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"error executing command in container: {reason}",
        "reason": "InternalError",
        "details": {"causes": [{"message": f"error executing command in container: {reason}"}]},
        "code": 500,
    }
