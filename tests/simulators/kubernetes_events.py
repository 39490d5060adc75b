"""Refusals and Events of the simulated Kubernetes API. Events are validated as kube-apiserver 1.36 validates them."""

from __future__ import annotations

import re
from typing import Any, Final

from tests.simulators.messages import Response, json_response

_REQUIRED: Final = ("eventTime", "action", "reason", "reportingController", "reportingInstance")
# kube-apiserver counts bytes, although its message says characters.
_MAX_BYTES: Final = {"note": 1024, "action": 128, "reason": 128, "reportingInstance": 128}
_MIN_SERIES_COUNT: Final = 2
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
        _check_times(event)
        name = event["metadata"].get("name", "")
        if problem := _problem_of_event(event, namespace):
            raise RefusedError(422, f'Event "{name}" is invalid: {problem}')
        if (namespace, name) in self:
            raise RefusedError(409, f'events "{name}" already exists')
        self[namespace, name] = event
        return event

    def patch(self, namespace: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        """Apply a merge patch to an Event."""
        event = self.get((namespace, name))
        if event is None:
            raise RefusedError(404, f'events "{name}" not found')
        _check_times(patch)
        if problem := _problem_of_patch(event, patch):
            raise RefusedError(422, f'Event "{name}" is invalid: {problem}')
        self[namespace, name] = event | {"series": {**(event.get("series") or {}), **patch["series"]}}
        return self[namespace, name]


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
    problems += _problems_of_series(event.get("series"))
    return ", ".join(problems)


def _problem_of_patch(event: dict[str, Any], patch: dict[str, Any]) -> str:
    """Return why a merge patch of an Event is invalid; "" if it is valid."""
    changed = [name for name, value in patch.items() if name != "series" and event.get(name) != value]
    problems = [f"{name}: Invalid value: field is immutable" for name in changed]
    return ", ".join([*problems, *_problems_of_series({**(event.get("series") or {}), **patch.get("series", {})})])


def _problems_of_series(series: dict[str, Any] | None) -> list[str]:
    if series is None:
        return []
    problems = (
        [] if series.get("count", 0) >= _MIN_SERIES_COUNT else ["series.count: Invalid value: should be at least 2"]
    )
    if not series.get("lastObservedTime"):
        problems.append("series.lastObservedTime: Required value")
    return problems


def _check_times(event: dict[str, Any]) -> None:
    """Refuse a time without microseconds."""
    for value in (event.get("eventTime"), (event.get("series") or {}).get("lastObservedTime")):
        if value is not None and not _MICRO_TIME.fullmatch(value):
            raise RefusedError(400, f"Event in version v1 cannot be handled: cannot parse {value}")
