"""Headscale through its own command line, run in its pod by way of the Kubernetes API."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

from lifecycle.clients.headscale import parsing
from lifecycle.clients.headscale.dialect import Dialect, dialect_of_help, dialect_of_version
from lifecycle.clients.headscale.errors import UPSTREAM, cli_refusal, is_missing
from lifecycle.clients.kubernetes.api import Cluster, Pod
from lifecycle.clients.kubernetes.exec import Output
from lifecycle.domain.errors import ApiError, AuthError, NotFoundError, ResponseError, TransientError
from lifecycle.domain.model import Node, PreAuthKey, User

Parsed = TypeVar("Parsed")

_PROGRAM = "headscale"
_CONTAINER = "headscale"
_SELECTORS = ("app.kubernetes.io/name=headscale", "app=headscale")

# What a shell and some container runtimes say instead of running a program that is not there.
_NO_PROGRAM = frozenset({126, 127})

# gRPC's codes, by which up to 0.29 a refusal's kind is told; "" stands for any answer that 0.30 and newer
# do not call a success.
_NOT_FOUND = frozenset({"NotFound", "Unknown", ""})
_REFUSED_CALLER = frozenset({"Unauthenticated", "PermissionDenied"})
_USELESS_REQUEST = frozenset({"InvalidArgument", "FailedPrecondition", "Unimplemented", "ResourceExhausted"})

_USAGE = re.compile(
    r"unknown (shorthand )?(flag|command)|required flag|invalid argument|accepts \d+ arg", re.IGNORECASE
)

# Keys of every kind, should one ever stand in a reason.
_SECRET = re.compile(r"hskey-[-\w]+|\b[0-9a-f]{32,}\b")
_LONGEST_REASON = 300

_LINE_START = re.compile(r"^(?=[^\s])", re.MULTILINE)

# From the CLI's own clock to the server's, as it makes a key: a call on a socket beside it.
_MAKING_A_KEY = timedelta(seconds=0.5)
_CLOCKS_DIFFER = timedelta(minutes=5)


class UsageError(ResponseError):
    """The CLI did not understand its command line: it is of another version than we think."""


class HeadscalePod:
    """Where Headscale runs: looked up for each command, since pods are replaced.

    Args:
        selector: label selector of its pods; None = the usual ones.
        container: name of its container; None = the one called headscale, else the only one.
    """

    def __init__(self, cluster: Cluster, *, namespace: str, selector: str | None, container: str | None) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._selectors = (selector,) if selector else _SELECTORS
        self._container = container

    def run(self, command: Sequence[str]) -> tuple[Pod, Output]:
        """Run a command there.

        Raises:
            ApiError: there is no such pod that is ready, or the command did not run to its end.
        """
        pod, container = self._find()
        return pod, self._cluster.run(pod, container, command)

    def _find(self) -> tuple[Pod, str]:
        found: list[Pod] = []
        for selector in self._selectors:
            pods = self._cluster.pods(self._namespace, selector)
            candidates = self._candidates(pods)
            ready = [(pod, container) for pod, container in candidates if pod.ready]
            if ready:
                # Of two the older is on its way out: what it is told now, its successor may never learn.
                return max(ready, key=lambda one: (one[0].created_at, one[0].name))
            if candidates:
                names = ", ".join(pod.name for pod, _ in candidates)
                raise TransientError(f"Headscale's pod is not ready ({self._namespace}/{names})", upstream=UPSTREAM)
            found += pods
        raise self._nowhere(found)

    def _candidates(self, pods: Sequence[Pod]) -> list[tuple[Pod, str]]:
        """Those that may be Headscale's, ready or not, each with its container."""
        wanted = self._container or _CONTAINER
        # The name tells Headscale from a neighbour that has the same labels.
        named = [(pod, wanted) for pod in pods if wanted in pod.containers]
        if named or self._container is not None:
            return named
        return [(pod, pod.containers[0]) for pod in pods if len(pod.containers) == 1]

    def _nowhere(self, found: Sequence[Pod]) -> ApiError:
        if found:
            names = ", ".join(found[0].containers)
            return ResponseError(
                f"pod {self._namespace}/{found[0].name} has no container {self._container or _CONTAINER}; set "
                f"HEADSCALE_CONTAINER to one of: {names}",
                upstream=UPSTREAM,
            )
        return TransientError(
            f"there is no Headscale pod in namespace {self._namespace} (labels {' or '.join(self._selectors)}); set "
            "HEADSCALE_NAMESPACE and HEADSCALE_POD_SELECTOR to its own, or HEADSCALE_URL and HEADSCALE_API_KEY",
            upstream=UPSTREAM,
        )


class ExecTransport:
    """A Headscale server by the command line in its pod; one command an answer.

    Args:
        pod: where to run it.
        now: gives aware UTC.
        observe: told of every command that ended: its outcome in one word.
    """

    def __init__(
        self,
        pod: HeadscalePod,
        *,
        now: Callable[[], datetime],
        observe: Callable[[str], None] = lambda _outcome: None,
    ) -> None:
        self._pod = pod
        self._now = now
        self._observe = observe
        self._dialect: Dialect | None = None
        self._pod_uid: str | None = None
        self._asked_life: timedelta | None = None
        self._deleted: set[str] = set()

    def version(self) -> str:
        """The server's version, as its command line says it, or the range that its options belong to."""
        return self._current_dialect().version

    def users(self) -> list[User]:
        """Every user."""
        return self._list(("users", "list"), parsing.parse_listed_user)

    def nodes(self) -> list[Node]:
        """Every node."""
        # An empty name is left out, as is all that is empty.
        return self._list(("nodes", "list"), lambda node: parsing.parse_node({"name": ""} | node))

    def node(self, node_id: str) -> Node:
        """One node, from the whole list: the command line cannot read a single one.

        Raises:
            NotFoundError: two lists in a row have other nodes and not this one. An empty list says nothing, but of a
                node that was deleted here.
        """
        for _ in range(2):
            nodes = self.nodes()
            for node in nodes:
                if node.id == node_id:
                    return node
            if not nodes and node_id not in self._deleted:
                raise TransientError("Headscale lists no node at all, where there was one", upstream=UPSTREAM)
        raise NotFoundError(f"Headscale lists no node {node_id}", upstream=UPSTREAM)

    def delete_node(self, node_id: str) -> None:
        """Remove the node's row."""
        self._deleted.add(node_id)
        # Without --force it would ask, and take silence for a no.
        if self._answer("nodes", "delete", "--identifier", node_id, "--force") is None:
            # All that up to 0.28 tells a deletion that the server refused from one that worked.
            raise TransientError(f"Headscale did not delete node {node_id}, and does not say why", upstream=UPSTREAM)

    def create_pre_auth_key(
        self, user: User, *, expires_at: datetime, reusable: bool, ephemeral: bool, tags: frozenset[str]
    ) -> PreAuthKey:
        """Make a key; the command line takes how long it is to live, not until when."""
        # In milliseconds: that makes it tell our key from others, should the answer be lost.
        milliseconds = (expires_at - self._now()) // timedelta(milliseconds=1)
        self._asked_life = timedelta(milliseconds=milliseconds)

        def create(dialect: Dialect) -> PreAuthKey:
            options = ["--user", dialect.user_reference(user), "--expiration", f"{milliseconds}ms"]
            options += ["--reusable"] * reusable + ["--ephemeral"] * ephemeral
            if tags:
                options += ["--tags", ",".join(sorted(tags))]
            command = ("preauthkeys", "create")
            return _parsed(command, parsing.parse_pre_auth_key, self._answer(*command, *options))

        return self._in_dialect(create)

    def matches_request(self, key: PreAuthKey, expires_at: datetime) -> bool:
        """Whether a listed key lives as long as the one that was asked for last, and began to about then."""
        if self._asked_life is None or key.created_at is None or key.expires_at is None:
            return False
        making = self._asked_life - (key.expires_at - key.created_at)
        return (
            timedelta(milliseconds=-1) <= making <= _MAKING_A_KEY and abs(key.expires_at - expires_at) <= _CLOCKS_DIFFER
        )

    def pre_auth_keys(self, user: User) -> list[PreAuthKey]:
        """The user's keys, or everybody's."""

        def list_keys(dialect: Dialect) -> list[PreAuthKey]:
            options = ("--user", dialect.user_reference(user)) if dialect.keys_by_user else ()
            return self._list(("preauthkeys", "list", *options), parsing.parse_pre_auth_key)

        return self._in_dialect(list_keys)

    def api_key_expires_at(self) -> datetime | None:
        """None: the command line in the pod needs no API key."""
        return None

    def expire_pre_auth_key(self, key: PreAuthKey, user: User) -> None:
        """Make a key useless from now on.

        Raises:
            ResponseError: up to 0.27 the command line wants the key itself, which would then stand among a
                process's arguments, in an address and in audit logs: it is not done.
        """

        def expire(dialect: Dialect) -> None:
            if not dialect.key_expire_by_id:
                raise ResponseError(
                    f"pre-auth key {key.id} of {user.name} cannot be expired through the command line of Headscale "
                    f"{dialect.version} without showing it; it expires by itself",
                    upstream=UPSTREAM,
                )
            self._answer("preauthkeys", "expire", "--id", key.id)

        self._in_dialect(expire)

    def _in_dialect(self, operation: Callable[[Dialect], Parsed]) -> Parsed:
        """Run a command whose options differ by version; once more when the server's version changed."""
        dialect = self._current_dialect()
        try:
            return operation(dialect)
        except UsageError:
            # A command that was not understood had no effect.
            self._dialect = None
            if self._current_dialect() == dialect:
                raise
            return operation(self._current_dialect())

    def _current_dialect(self) -> Dialect:
        if self._dialect is None:
            dialect = self._detect()
            self._dialect = dialect
        return self._dialect

    def _detect(self) -> Dialect:
        """Find out the version; a build of one's own may not know it, but its options tell."""
        written = self._run("version", "-o", "json")
        try:
            said = _last_json(written)["version"]
        except (ValueError, KeyError, TypeError):
            # Some older ones write the bare version, `-o json` or not.
            said = written.strip()
        dialect = dialect_of_version(said)
        if dialect is None:
            dialect = dialect_of_help(self._run("preauthkeys", "list", "--help"))
        if dialect is None:
            raise _no_sense(("version",))
        return dialect

    def _list(self, command: Sequence[str], parse: Callable[[Any], Parsed]) -> list[Parsed]:
        answer = self._answer(*command)
        # What an empty list is, up to 0.29.
        items = [] if answer is None else answer
        if not isinstance(items, list):
            raise _no_sense(command)
        return [_parsed(command, parse, item) for item in items]

    def _answer(self, *arguments: str) -> Any:
        """What a command wrote, as JSON in the API's own names."""
        # Two arguments: `-ojson` and `--output=json` do not keep log lines away.
        written = self._run(*arguments, "-o", "json")
        if not written.strip():
            raise TransientError(f"{_what(arguments)} wrote nothing, and was to write JSON", upstream=UPSTREAM)
        try:
            return parsing.camelised(_last_json(written))
        except (ValueError, RecursionError):
            raise _no_sense(arguments) from None

    def _run(self, *arguments: str) -> str:
        """Run one command, and give what it wrote.

        Raises:
            ApiError: it failed, or is not known to have succeeded.
        """
        try:
            pod, output = self._pod.run((_PROGRAM, *arguments))
        except ApiError:
            self._observe("no_answer")
            raise
        if pod.uid != self._pod_uid:
            # Another pod may be of another version.
            self._pod_uid = pod.uid
            self._dialect = None
        if output.exit_status != 0:
            error = _failure(arguments, output)
            self._observe("server_error" if isinstance(error, TransientError) else "refused")
            raise error
        self._observe("ok")
        return output.stdout.decode(errors="replace")


def _what(arguments: Sequence[str]) -> str:
    """A command for messages: no option's value, which may be anybody's."""
    return " ".join([f"`{_PROGRAM}", *arguments[:2]]) + "`"


def _failure(arguments: Sequence[str], output: Output) -> ApiError:
    """What a command that failed means; its exit status alone does not tell."""
    what = _what(arguments)
    text = _reason(output.stderr)
    if output.exit_status in _NO_PROGRAM:
        return ResponseError(
            f"{what} could not be run: HEADSCALE_CONTAINER has no such program ({text or output.exit_status})",
            upstream=UPSTREAM,
        )
    code, said = cli_refusal(text)
    shown = f"{what} failed: {text or f'exit status {output.exit_status}, without a reason'}"
    if code in _NOT_FOUND and is_missing(said):
        return NotFoundError(f"Headscale: {shown}", upstream=UPSTREAM)
    if code in _REFUSED_CALLER:
        return AuthError(f"Headscale: {shown}", upstream=UPSTREAM)
    if code in _USELESS_REQUEST:
        return ResponseError(f"Headscale: {shown}", upstream=UPSTREAM)
    if code is None and _USAGE.search(text):
        return UsageError(f"Headscale: {shown}", upstream=UPSTREAM)
    # The server behind the command line does not answer, or is in trouble.
    return TransientError(f"Headscale: {shown}", upstream=UPSTREAM)


def _reason(stderr: bytes) -> str:
    """What went wrong, in the command line's own words: a JSON object's `error`, or a line of text."""
    text = stderr.decode(errors="replace").strip()
    try:
        text = str(_last_json(text)["error"])
    except (ValueError, KeyError, TypeError):
        text = next((line for line in text.splitlines() if line.startswith("Error:")), text.rpartition("\n")[2])
    return _SECRET.sub("…", text)[:_LONGEST_REASON]


def _last_json(text: str) -> Any:
    """The JSON value with which a text ends, whatever lines stand before it.

    Raises:
        ValueError: it does not end with one that begins at the start of a line.
    """
    decoder = json.JSONDecoder()
    for line in _LINE_START.finditer(text):
        try:
            value, end = decoder.raw_decode(text, line.start())
        except (ValueError, RecursionError):
            continue
        if not text[end:].strip():
            return value
    raise ValueError("no JSON value at the end")


def _parsed(command: Sequence[str], parse: Callable[[Any], Parsed], payload: Any) -> Parsed:
    try:
        return parse(payload)
    except (ValueError, KeyError, TypeError, AttributeError):
        # Not chained: the payload's values, a key's secret among them, stay out of the traceback.
        raise _no_sense(command) from None


def _no_sense(command: Sequence[str]) -> ResponseError:
    return ResponseError(
        f"what {_what(command)} wrote is not what Headscale's command line writes; is it Headscale's own pod that "
        "HEADSCALE_POD_SELECTOR and HEADSCALE_CONTAINER name?",
        upstream=UPSTREAM,
    )
