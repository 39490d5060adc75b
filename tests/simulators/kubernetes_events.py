"""Refusals and Events of the simulated Kubernetes API. Events are validated as kube-apiserver 1.36 validates them."""

from __future__ import annotations

import re
from typing import Any, Final

from tests.simulators.messages import Response, json_response

_REQUIRED: Final = ("action", "reason", "reportingController", "reportingInstance")
# kube-apiserver counts bytes, although its message says characters.
_MAX_BYTES: Final = {"note": 1024, "action": 128, "reason": 128, "reportingInstance": 128}
_MICRO_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_CONTROLLER: Final = re.compile(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", re.ASCII)

_REASONS: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "AlreadyExists",
    415: "UnsupportedMediaType",
    422: "Invalid",
}


class RefusedError(Exception):
    """A refused request. The response contains a `Status` object."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def response(self) -> Response:
        body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": _REASONS[self.status],
            "code": self.status,
        }
        return json_response(body, self.status)


class Events(dict[tuple[str, str], dict[str, Any]]):
    """All Events, by namespace and name."""

    def create(self, namespace: str, event: dict[str, Any]) -> dict[str, Any]:
        """Store a new Event."""
        if not _MICRO_TIME.fullmatch(event.get("eventTime") or ""):
            raise RefusedError(400, f"Event in version v1 cannot be handled: cannot parse {event.get('eventTime')}")
        name = event["metadata"].get("name", "")
        if problem := _problem_of_event(event, namespace):
            raise RefusedError(422, f'Event "{name}" is invalid: {problem}')
        if (namespace, name) in self:
            raise RefusedError(409, f'events "{name}" already exists')
        self[namespace, name] = event
        return event


def _problem_of_event(event: dict[str, Any], namespace: str) -> str:
    """Return why a new Event is invalid; "" if it is valid."""
    regarding = event.get("regarding") or {}
    problems = [f"{name}: Required value" for name in _REQUIRED if not event.get(name)]
    problems += [
        f"{name}: can have at most {limit} characters"
        for name, limit in _MAX_BYTES.items()
        if len(event.get(name, "").encode()) > limit
    ]
    if event.get("type") not in ("Normal", "Warning"):
        problems.append("type: Invalid value")
    if not _NAME.fullmatch(event["metadata"].get("name") or ""):
        problems.append("metadata.name: Invalid value")
    if event["metadata"].get("namespace", namespace) != namespace or regarding.get("namespace", "") != namespace:
        problems.append("involvedObject.namespace: Invalid value: does not match event.namespace")
    if event.get("reportingController") and not _CONTROLLER.fullmatch(event["reportingController"]):
        problems.append("reportingController: Invalid value")
    return ", ".join(problems)
