"""The simulated `headscale` command of every release, which calls the simulated server.

Its output is modeled on 0.23.0, 0.24.3, 0.25.1, 0.26.1, 0.27.1, 0.28.0, 0.29.2 and the main branch, which will be 0.30.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode

import httpx

from tests.simulators.dialects import KeyUser
from tests.simulators.headscale import REGISTER_METHODS, HeadscaleSimulator
from tests.simulators.messages import Request, Response

_GRPC_CODES: Final = {
    2: "Unknown",
    3: "InvalidArgument",
    5: "NotFound",
    8: "ResourceExhausted",
    12: "Unimplemented",
}

_METHOD_NUMBERS: Final = {name: number for number, name in enumerate(REGISTER_METHODS.values(), start=1)}

_TIME_FIELDS: Final = frozenset({"lastSeen", "expiry", "createdAt", "expiration"})

_DURATION: Final = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?")

_EMPTY_USER: Final = {
    "createdAt": "0001-01-01T00:00:00Z",
    "displayName": "",
    "email": "",
    "id": "",
    "name": "",
    "profilePicUrl": "",
    "provider": "",
    "providerId": "",
}


@dataclass(frozen=True, slots=True)
class Finished:
    """The exit status and output of a program that has ended."""

    exit_status: int = 0
    stdout: bytes = b""
    stderr: bytes = b""


class _FailedError(Exception):
    """A command has failed. Its exit status is 1, and the message is its standard error."""


class HeadscaleCli:
    """The `headscale` command in the container of its server. It uses the server's Unix socket, which needs no API key.

    Args:
        server: the server, which determines the release.
        now: returns the time of the container in UTC; the real time if omitted.

    Attributes:
        stopped: True if the server is down, and its socket does not respond.
        calls: the arguments of each call, oldest first.
    """

    def __init__(self, server: HeadscaleSimulator, *, now: Callable[[], datetime] | None = None) -> None:
        self._server = server
        self._now = now or (lambda: datetime.now(UTC))
        self.stopped = False
        self.calls: list[tuple[str, ...]] = []

    def __call__(self, argv: Sequence[str]) -> Finished:
        """Run a command. The arguments include the program's name."""
        _, *arguments = argv
        self.calls.append(tuple(arguments))
        try:
            return Finished(stdout=self._run(arguments).encode())
        except _FailedError as error:
            return Finished(1, stderr=str(error).encode())

    def _run(self, arguments: Sequence[str]) -> str:
        if list(arguments) == ["preauthkeys", "list", "--help"]:
            return self._help()
        words = 1 if arguments[:1] == ["version"] else 2
        run = self._commands().get(" ".join(arguments[:words]))
        if run is None:
            raise _FailedError(f'Error: unknown command "{" ".join(arguments[:1])}" for "headscale"\n')
        return run(arguments[words:])

    def _commands(self) -> Mapping[str, Callable[[Sequence[str]], str]]:
        return {
            "version": self._version,
            "users list": self._list_users,
            "nodes list": self._list_nodes,
            "nodes delete": self._delete_node,
            "preauthkeys list": self._list_keys,
            "preauthkeys create": self._create_key,
            "preauthkeys expire": self._expire_key,
        }

    # --- Commands -----------------------------------------------------------------------------------

    def _version(self, rest: Sequence[str]) -> str:
        options = _options(rest, {"-o": True})
        version = self._server.reported_version or f"v{self._server.version}"
        if "-o" not in options:
            return f"{version}\n"
        return _json_text({"version": version} | ({"commit": "0" * 40} if self._minor >= 26 else {}))

    def _help(self) -> str:
        value = "uint       User identifier (ID)" if self._identifies_users_by_id else "string     User"
        user = "" if self._identifies_keys_by_id else f"  -u, --user {value}\n"
        title = "List all preauthkeys" if self._identifies_keys_by_id else "List the preauthkeys for this user"
        return (
            f"{title}\n\nUsage:\n  headscale preauthkeys list [flags]\n\nFlags:\n  -h, --help   help for list\n\n"
            f"Global Flags:\n  -o, --output string   Output format\n{user}"
        )

    def _list_users(self, rest: Sequence[str]) -> str:
        _options(rest, {"-o": True})
        return self._list(self._request("GET", "/api/v1/user", "listing users")["users"])

    def _list_nodes(self, rest: Sequence[str]) -> str:
        _options(rest, {"-o": True})
        return self._list(self._request("GET", "/api/v1/node", "listing nodes")["nodes"])

    def _delete_node(self, rest: Sequence[str]) -> str:
        options = _options(rest, {"-o": True, "--identifier": True, "--force": False})
        path = f"/api/v1/node/{options['--identifier']}"
        self._request("GET", path, "getting node")
        if "--force" not in options:
            # The command asks for confirmation, and receives no answer because it has no terminal.
            return _json_text({"Result": "Node not deleted"})
        try:
            self._request("DELETE", path, "deleting node")
        except _FailedError:
            if self._minor <= 28:
                return "null\n"
            raise
        return _json_text({} if self._minor <= 28 else {"Result": "Node deleted"})

    def _list_keys(self, rest: Sequence[str]) -> str:
        options = _options(rest, {"-o": True} if self._identifies_keys_by_id else {"-o": True, "--user": True})
        query = {} if self._identifies_keys_by_id else {"user": self._user(options)}
        return self._list(self._request("GET", "/api/v1/preauthkey", "listing preauthkeys", query=query)["preAuthKeys"])

    def _create_key(self, rest: Sequence[str]) -> str:
        known = {"-o": True, "--user": True, "--expiration": True, "--tags": True}
        options = _options(rest, known | {"--reusable": False, "--ephemeral": False})
        expires_at = self._now() + _duration(options.get("--expiration", "1h"))
        body = {
            "user": self._user(options),
            "reusable": "--reusable" in options,
            "ephemeral": "--ephemeral" in options,
            "expiration": expires_at.astimezone(UTC).isoformat(),
            "aclTags": options["--tags"].split(",") if "--tags" in options else [],
        }
        key = self._request("POST", "/api/v1/preauthkey", "creating preauthkey", body=body)["preAuthKey"]
        if self._minor == 23:
            # In 0.23, only the list of keys shows the tags.
            key = key | {"aclTags": []}
        return self._output(key)

    def _expire_key(self, rest: Sequence[str]) -> str:
        if self._identifies_keys_by_id:
            options = _options(rest, {"-o": True, "--id": True})
            body = {"id": options["--id"]}
        else:
            key, *rest = rest
            options = _options(rest, {"-o": True, "--user": True})
            body = {"user": self._user(options), "key": key}
        self._request("POST", "/api/v1/preauthkey/expire", "expiring preauthkey", body=body)
        return _json_text({})

    # --- Differences between releases ---------------------------------------------------------------

    @property
    def _minor(self) -> int:
        return int(self._server.version.split(".")[1])

    @property
    def _identifies_users_by_id(self) -> bool:
        return self._server.dialect.key_user is not KeyUser.NAME

    @property
    def _identifies_keys_by_id(self) -> bool:
        """True if keys are listed for all users, and expired by id."""
        return self._server.dialect.identifies_keys_by_id

    def _user(self, options: Mapping[str, str]) -> str:
        user = options.get("--user")
        if user is None:
            raise _FailedError('Error: required flag(s) "user" not set\n')
        if self._identifies_users_by_id and not user.isdecimal():
            reason = f'strconv.ParseUint: parsing "{user}": invalid syntax'
            raise _FailedError(f'Error: invalid argument "{user}" for "-u, --user" flag: {reason}\n')
        return user

    # --- From the server's response to the output ----------------------------------------------------

    def _request(
        self, method: str, path: str, operation: str, *, query: Mapping[str, str] | None = None, body: Any = None
    ) -> Any:
        """Send a request to the server over its socket, and return the JSON of the response.

        Raises:
            _FailedError: the server refused the request or did not respond. The message contains the operation.
        """
        if self.stopped:
            raise self._unreachable(operation, "context deadline exceeded")
        try:
            response = self._server.handle(
                Request(
                    method=method,
                    path=path,
                    query=urlencode(query or {}),
                    headers={"content-type": "application/json"},
                    body=b"" if body is None else json.dumps(body).encode(),
                    on_unix_socket=True,
                )
            )
            content = b"".join(response.content())
        except httpx.TimeoutException:
            raise self._unreachable(operation, "context deadline exceeded") from None
        except httpx.TransportError:
            raise self._unreachable(operation, "EOF") from None
        if response.status != httpx.codes.OK:
            raise self._refused(operation, response)
        try:
            return json.loads(content)
        except ValueError:
            raise self._unreachable(operation, "invalid character in JSON") from None

    def _unreachable(self, operation: str, reason: str) -> _FailedError:
        if self._minor <= 28 and self.stopped:
            line = "FTL github.com/juanfont/headscale/cmd/headscale/cli/utils.go:124 > Could not connect: "
            return _FailedError(f'2026-01-01T00:00:00Z {line}{reason} error="{reason}"\n')
        if self._minor <= 29:
            return self._grpc_error(operation, f"rpc error: code = Unavailable desc = {reason}")
        return _json_error(f'{operation}: Get "http://local/api/v1": {reason}')

    def _refused(self, operation: str, response: Response) -> _FailedError:
        status = f"{response.status} {HTTPStatus(response.status).phrase.upper()}"
        body = json.loads(response.body or b"{}") if "json" in response.content_type else {}
        if self._minor <= 29:
            code = _GRPC_CODES.get(body.get("code", 0), "Unavailable")
            return self._grpc_error(operation, f"rpc error: code = {code} desc = {body.get('message', status)}")
        causes = [cause["message"] for cause in body.get("errors", ())]
        return _json_error(": ".join(["unexpected response status", body.get("detail", status), *causes]))

    def _grpc_error(self, operation: str, text: str) -> _FailedError:
        return _json_error(f"{operation}: {text}" if self._minor == 29 else text)

    def _list(self, items: Sequence[Any]) -> str:
        if not items and self._minor <= 29:
            return "null\n"
        return self._output(list(items))

    def _output(self, value: Any) -> str:
        return _json_text(_with_empty_objects(value) if self._minor >= 30 else self._protobuf(value))

    def _protobuf(self, value: Any) -> Any:
        """Encode protobuf messages as Go's JSON encoder does: with names in snake_case, and without empty fields."""
        if isinstance(value, list):
            return [self._protobuf(item) for item in value]
        if not isinstance(value, dict):
            return value
        encoded = {}
        for name, field in value.items():
            encoded_field = self._protobuf_field(name, field, value)
            if encoded_field not in (None, "", [], False):
                encoded[re.sub(r"[A-Z]", lambda match: "_" + match[0].lower(), name)] = encoded_field
        return encoded

    def _protobuf_field(self, name: str, field: Any, message: Mapping[str, Any]) -> Any:
        if name in _TIME_FIELDS:
            return None if field is None else _timestamp(field)
        if name == "registerMethod":
            return _METHOD_NUMBERS[field]
        if name == "id" and self._has_numeric_id(message):
            return int(field)
        return self._protobuf(field)

    def _has_numeric_id(self, message: Mapping[str, Any]) -> bool:
        """Return True if the id of a message is a number: always for nodes, from 0.26 for keys, from 0.24 for users."""
        if "reusable" in message:
            return self._minor >= 26
        return "machineKey" in message or self._minor >= 24


def _json_error(text: str) -> _FailedError:
    return _FailedError(_json_text({"error": text}))


def _json_text(value: Any) -> str:
    return json.dumps(value, indent="\t", ensure_ascii=False) + "\n"


def _options(arguments: Sequence[str], known: Mapping[str, bool]) -> dict[str, str]:
    """Return the options of a command and their values.

    Args:
        arguments: the arguments after the command.
        known: the options of this release; True = a value follows.

    Raises:
        _FailedError: an option is unknown.
    """
    options: dict[str, str] = {}
    rest = iter(arguments)
    for name in rest:
        if name not in known:
            raise _FailedError(f"Error: unknown flag: {name}\nUsage:\n  headscale [command]\n")
        options[name] = next(rest) if known[name] else ""
    if options.get("-o", "json") != "json":
        raise _FailedError(f"Error: unknown output {options['-o']}\n")
    return options


def _duration(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise _json_error(f"parsing duration: not a valid duration string: {text!r}")
    days, hours, minutes, seconds, milliseconds = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds, milliseconds=milliseconds)


def _timestamp(text: str) -> dict[str, int]:
    """Encode an instant as a protobuf Timestamp, without fields that are zero."""
    match = re.fullmatch(r"(.*?)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", text)
    assert match is not None
    instant = datetime.fromisoformat(match[1] + match[3])
    nanos = int((match[2] or "").ljust(9, "0"))
    fields = {"seconds": int(instant.timestamp()), "nanos": nanos}
    return {name: number for name, number in fields.items() if number}


def _with_empty_objects(value: Any) -> Any:
    """Return what 0.30 prints: the JSON of the API, sorted by name, with empty objects instead of null."""
    if isinstance(value, list):
        return [_with_empty_objects(item) for item in value]
    if not isinstance(value, dict):
        return value
    empty: dict[str, Any] = {
        "user": _EMPTY_USER,
        "preAuthKey": {
            "aclTags": [],
            "createdAt": _EMPTY_USER["createdAt"],
            "ephemeral": False,
            "expiration": _EMPTY_USER["createdAt"],
            "id": "",
            "key": "",
            "reusable": False,
            "used": False,
            "user": _EMPTY_USER,
        },
    }
    return {
        name: empty[name] if field is None and name in empty else _with_empty_objects(field)
        for name, field in sorted(value.items())
    }


Program = Callable[[Sequence[str]], Finished]
"""A program in a container. It receives its arguments, including its own name, and returns the result."""
