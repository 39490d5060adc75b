"""How the simulated Headscale parses requests and formats responses.

Up to 0.29, Headscale uses the library protojson. From 0.30 on, it uses Huma, which is stricter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Final

from tests.simulators.dialects import Dialect
from tests.simulators.messages import Request, Response, json_response

ZERO: Final = datetime(1, 1, 1, tzinfo=UTC)
"""Go's zero time, which means "not set"."""

MAX_UINT64: Final = 2**64 - 1

# gRPC status codes.
INVALID: Final = 3
NOT_FOUND: Final = 5
EXHAUSTED: Final = 8
UNKNOWN: Final = 2
UNIMPLEMENTED: Final = 12

STATUS_OF_CODE: Final = {
    INVALID: 400,
    NOT_FOUND: 404,
    EXHAUSTED: 429,
    UNKNOWN: 500,
    UNIMPLEMENTED: 501,
}

# Maximum size of a request body.
GRPC_LIMIT: Final = 4 * 1024 * 1024
HUMA_LIMIT: Final = 1024 * 1024

RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")

LOCAL: Final = timezone(timedelta(hours=2))
"""The time zone of the simulated server. From 0.30 on, times in responses are in this zone instead of UTC."""


class RefusedError(Exception):
    """The API refuses a request. The method `response` returns the error response."""

    def __init__(
        self,
        message: str,
        *,
        code: int = UNKNOWN,
        status: int = 500,
        detail: str = "",
        errors: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Create an error. The format of its response depends on the release.

        Args:
            message: the server's message.
            code: the gRPC code, up to 0.29. The HTTP status follows from this code.
            status: the HTTP status, from 0.30 on.
            detail: the field `detail` of the response, from 0.30 on. If it is empty, this field contains the message.
            errors: the message and location of each invalid part of the request, from 0.30 on.
        """
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.detail = detail
        self.errors = errors

    def response(self, dialect: Dialect) -> Response:
        """Return the response in the format of this release."""
        if not dialect.uses_huma:
            body: dict[str, Any] = {"code": self.code, "message": self.message, "details": []}
            return json_response(body, STATUS_OF_CODE[self.code])
        body = {"title": HTTPStatus(self.status).phrase, "status": self.status}
        if self.detail:
            body |= {"detail": self.detail, "errors": [*self.errors] or [{"message": self.message}]}
        else:
            body |= {"detail": self.message}
        return json_response(body, self.status, content_type="application/problem+json")


def time_text(dialect: Dialect, instant: datetime, *, nanos: int = 0) -> str:
    """Return the text of a time, in the format of this release.

    Args:
        instant: a timezone-aware datetime.
        nanos: 0 to 999 nanoseconds in addition, which a datetime cannot contain.
    """
    if instant == ZERO:
        return "0001-01-01T00:00:00Z"
    fraction = f"{instant.microsecond:06d}{nanos:03d}"
    if dialect.uses_huma:
        local = instant.astimezone(LOCAL)
        trimmed = fraction.rstrip("0")
        return f"{local.isoformat()[:19]}{'.' if trimmed else ''}{trimmed}+02:00"
    # protojson writes 0, 3, 6 or 9 digits.
    while fraction.endswith("000"):
        fraction = fraction[:-3]
    return f"{instant.astimezone(UTC).isoformat()[:19]}{'.' if fraction else ''}{fraction}Z"


class FieldType(Enum):
    """The type of a field in a request body."""

    STRING = auto()
    ID = auto()
    BOOLEAN = auto()
    TIME = auto()
    STRINGS = auto()


def read_body(request: Request, dialect: Dialect, fields: Mapping[str, FieldType]) -> dict[str, Any]:
    """Parse a request's JSON as strictly as this release does, and return the fields that it contains.

    Args:
        fields: the type of each known field, by name.

    Raises:
        RefusedError: the body is invalid.
    """
    data = request.body
    if dialect.uses_huma:
        return _read_huma_body(request, data, fields)
    if len(data) > GRPC_LIMIT:
        raise RefusedError(f"grpc: received message larger than max ({len(data)} vs. {GRPC_LIMIT})", code=EXHAUSTED)
    if not data.strip():
        return {}
    try:
        document = json.loads(data, object_pairs_hook=_without_duplicates)
    except ValueError as error:
        raise RefusedError(f"proto: syntax error (line 1:1): {error.__class__.__name__}", code=INVALID) from error
    if not isinstance(document, dict):
        raise RefusedError("proto: syntax error (line 1:1): unexpected token", code=INVALID)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        for spelling in dict.fromkeys((name, _snake_case(name))):
            value = document.get(spelling)
            if value is None:
                continue
            if name in values:
                raise RefusedError(f'proto: (line 1:2): duplicate field "{spelling}"', code=INVALID)
            values[name] = _protojson_value(field, value)
    return values


def _without_duplicates(members: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(members)
    if len(document) != len(members):
        raise RefusedError("proto: (line 1:2): duplicate field", code=INVALID)
    return document


def _snake_case(name: str) -> str:
    return re.sub(r"[A-Z]", lambda match: "_" + match[0].lower(), name)


def _protojson_value(field: FieldType, value: Any) -> Any:
    match field, value:
        case FieldType.STRING, str():
            return value
        case FieldType.BOOLEAN, bool():
            return value
        case FieldType.STRINGS, list() if all(isinstance(item, str) for item in value):
            return value
        case FieldType.TIME, str() if (instant := parse_time(value)) is not None:
            return instant
        case FieldType.ID, str() if re.fullmatch(r"\d+", value) and int(value) <= MAX_UINT64:
            return int(value)
        case FieldType.ID, int() if not isinstance(value, bool) and 0 <= value <= MAX_UINT64:
            return value
    types = {
        FieldType.STRING: "string",
        FieldType.BOOLEAN: "bool",
        FieldType.ID: "uint64",
        FieldType.TIME: "google.protobuf.Timestamp",
    }
    raise RefusedError(
        f"proto: (line 1:2): invalid value for {types.get(field, 'string')} field: {json.dumps(value)}", code=INVALID
    )


def _read_huma_body(request: Request, data: bytes, fields: Mapping[str, FieldType]) -> dict[str, Any]:
    if len(data) > HUMA_LIMIT:
        raise RefusedError(f"request body is too large limit={HUMA_LIMIT} bytes", status=413)
    if not data:
        raise RefusedError("request body is required", status=400)
    text = data.decode(errors="replace")
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type not in ("", "application/json") and not content_type.endswith("+json"):
        raise _invalid(415, _error(f"unknown content type: {content_type}", "body", text))
    try:
        document = json.loads(data)
    except ValueError as error:
        raise _invalid(400, _error("invalid character in JSON", "body", text)) from error
    if not isinstance(document, dict):
        raise _invalid(422, _error("expected object", "body", document))
    unknown = [_error("unexpected property", f"body.{name}", document) for name in document if name not in fields]
    mistyped = [
        _error(f"expected {EXPECTED_TYPES[fields[name]]}", f"body.{name}", value)
        for name, value in document.items()
        if name in fields and not _is_of_type(fields[name], value)
    ]
    if unknown or mistyped:
        raise _invalid(422, *unknown, *mistyped)
    return {name: _huma_value(fields[name], value) for name, value in document.items() if value is not None}


EXPECTED_TYPES: Final = {
    FieldType.STRING: "string",
    FieldType.ID: "string",
    FieldType.BOOLEAN: "boolean",
    FieldType.TIME: "string to be RFC 3339 date-time",
    FieldType.STRINGS: "array",
}


def _invalid(status: int, *errors: Mapping[str, Any]) -> RefusedError:
    """Return the error for an invalid request, from 0.30 on. The error contains the invalid values."""
    return RefusedError(str(errors[0]["message"]), status=status, detail="validation failed", errors=errors)


def _error(message: str, location: str, value: Any) -> dict[str, Any]:
    error = {"message": message, "location": location}
    return error if value is None else error | {"value": value}


def _is_of_type(field: FieldType, value: Any) -> bool:
    match field, value:
        case _, None:
            return True
        case ((FieldType.STRING | FieldType.ID), str()):
            return True
        case FieldType.BOOLEAN, bool():
            return True
        case FieldType.STRINGS, list():
            return all(isinstance(item, str) for item in value)
        case FieldType.TIME, str():
            return parse_time(value) is not None
    return False


def _huma_value(field: FieldType, value: Any) -> Any:
    match field:
        case FieldType.ID:
            return parse_id(value, detail="invalid id")
        case FieldType.TIME:
            return parse_time(value)
    return value


def parse_time(text: str) -> datetime | None:
    """Parse an RFC 3339 time with a time zone; None if it is invalid."""
    if RFC3339.fullmatch(text) is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def parse_id(text: str, *, parameter: str = "id", detail: str = "") -> int:
    """Parse an id in a path, in a query or, from 0.30 on, in a body. Headscale reads an empty text as 0.

    Args:
        text: the id.
        parameter: the name of the parameter in the path.
        detail: the field `detail` of the error response, from 0.30 on, if the id is in a body.

    Raises:
        RefusedError: the id is not an unsigned 64-bit number.
    """
    if not text:
        return 0
    if re.fullmatch(r"[0-9]+", text) is None or int(text) > MAX_UINT64:
        cause = f'strconv.ParseUint: parsing "{text}": invalid syntax'
        message = cause if detail else f"type mismatch, parameter: {parameter}, error: {cause}"
        raise RefusedError(message, code=INVALID, status=400, detail=detail)
    return int(text)
