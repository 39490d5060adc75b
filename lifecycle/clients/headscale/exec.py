"""Use Headscale through its command line, which is run in Headscale's pod through the Kubernetes API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar

from lifecycle.clients.headscale import cli, parsing
from lifecycle.clients.headscale.dialect import Dialect, dialect_of_help, dialect_of_version
from lifecycle.clients.headscale.errors import UPSTREAM
from lifecycle.clients.headscale.pod import HeadscalePod, Target
from lifecycle.clients.response import well_formed
from lifecycle.domain.errors import ApiError, NotFoundError, ResponseError, TransientError
from lifecycle.domain.model import KeySpec, Node, PreAuthKey, User

Parsed = TypeVar("Parsed")

# The command line computes the expiry of a new key, and the server sets its creation time a moment later. The
# difference between the two times is therefore shorter than the requested lifetime by at most this delay.
_MAX_CREATION_DELAY = timedelta(seconds=0.5)
# The clocks of Headscale's pod and of the API server can differ by this time, and so can the expiry of a key and the
# requested expiry.
_MAX_CLOCK_SKEW = timedelta(minutes=5)


class ExecTransport:
    """A Headscale server, used through the command line in its pod.

    Args:
        now: returns the current time in UTC.
        on_outcome: called after each command with ok, no_answer, server_error or refused.
    """

    def __init__(
        self,
        pod: HeadscalePod,
        *,
        now: Callable[[], datetime],
        on_outcome: Callable[[str], None] = lambda _outcome: None,
    ) -> None:
        self._pod = pod
        self._now = now
        self._on_outcome = on_outcome
        self._dialect: Dialect | None = None
        self._target: Target | None = None
        # The lifetime of the last requested key.
        self._requested_lifetime: timedelta | None = None
        # The ids of nodes whose deletion was requested.
        self._deleted: set[str] = set()

    def clock_skew(self) -> timedelta | None:
        """Return how far the clock of the Kubernetes API server is ahead of this machine's clock; None if unknown.

        The command line does not report Headscale's time.
        """
        return self._pod.cluster.http.clock_skew

    def version(self) -> str:
        """Return the version that the command line reports, or a range of releases with the same options."""
        return self._current_dialect().version

    def users(self) -> list[User]:
        """Return every user."""
        return self._list(("users", "list"), parsing.parse_listed_user)

    def nodes(self) -> list[Node]:
        """Return every node."""
        return self._list(("nodes", "list"), parsing.parse_node)

    def node(self, node_id: str) -> Node:
        """Return one node. The command line cannot read a single node, so all nodes are listed.

        Raises:
            NotFoundError: the node is missing in two consecutive lists. An empty list counts only if this program has
                requested the deletion of the node.
        """
        for _ in range(2):
            try:
                nodes = self.nodes()
            except NotFoundError as error:
                # The command failed because another object is missing.
                raise TransientError(str(error), upstream=UPSTREAM) from error
            for node in nodes:
                if node.id == node_id:
                    return node
            if not nodes and node_id not in self._deleted:
                raise TransientError("Headscale lists no nodes, although there was one.", upstream=UPSTREAM)
        raise NotFoundError(f"Headscale lists no node {node_id}.", upstream=UPSTREAM)

    def delete_node(self, node_id: str) -> None:
        """Delete a node. Then check that it is gone, because up to 0.28 the command does not report every failure."""
        self._deleted.add(node_id)
        # Without --force the command asks for confirmation.
        command = ("nodes", "delete", "--identifier", node_id, "--force")
        if self._parsed(command, lambda output: output is None):
            # Up to 0.28, a failed deletion differs from a successful one only in the output `null`.
            raise TransientError(f"Headscale did not delete node {node_id}, and gave no reason.", upstream=UPSTREAM)
        with suppress(NotFoundError):
            self.node(node_id)
            raise ResponseError(f"Headscale still has node {node_id} after its deletion.", upstream=UPSTREAM)

    def create_pre_auth_key(self, spec: KeySpec, expires_at: datetime) -> PreAuthKey:
        """Create a key. The command line accepts a lifetime, not a time of expiry."""
        # If the output is lost, the exact number of milliseconds identifies the created key in a list.
        server_time = self._now() + (self.clock_skew() or timedelta())
        milliseconds = (expires_at - server_time) // timedelta(milliseconds=1)
        self._requested_lifetime = timedelta(milliseconds=milliseconds)

        def create(dialect: Dialect) -> PreAuthKey:
            command = ["preauthkeys", "create", "--user", dialect.user_reference(spec.user)]
            command += ["--expiration", f"{milliseconds}ms"]
            command += ["--reusable"] * spec.reusable + ["--ephemeral"] * spec.ephemeral
            command += ["--tags", ",".join(sorted(spec.tags))] if spec.tags else []
            return self._parsed(command, parsing.parse_pre_auth_key)

        return self._in_dialect(create)

    def matches_request(self, key: PreAuthKey, expires_at: datetime) -> bool:
        """Return True if a listed key has the lifetime that was requested last, and expires at about `expires_at`."""
        if self._requested_lifetime is None or key.created_at is None or key.expires_at is None:
            return False
        creation_delay = self._requested_lifetime - (key.expires_at - key.created_at)
        return (
            timedelta(milliseconds=-1) <= creation_delay <= _MAX_CREATION_DELAY
            and abs(key.expires_at - expires_at) <= _MAX_CLOCK_SKEW
        )

    def pre_auth_keys(self, user: User) -> list[PreAuthKey]:
        """Return the keys of the user. From 0.28 on, return the keys of all users."""

        def list_keys(dialect: Dialect) -> list[PreAuthKey]:
            options = () if dialect.uses_key_ids else ("--user", dialect.user_reference(user))
            return self._list(("preauthkeys", "list", *options), parsing.parse_pre_auth_key)

        return self._in_dialect(list_keys)

    def api_key_expires_at(self) -> datetime | None:
        """Return None: the command line in the pod needs no API key."""
        return None

    def expire_pre_auth_key(self, key: PreAuthKey, user: User) -> None:
        """Expire a key.

        Raises:
            ResponseError: the release is 0.27 or older. Its command line requires the key's secret as an argument,
                which would be visible in the process table, in URLs and in audit logs.
        """

        def expire(dialect: Dialect) -> None:
            if not dialect.uses_key_ids:
                raise ResponseError(
                    f"Pre-auth key {key.id} of {user.label} cannot be expired with the command line of Headscale "
                    f"{dialect.version} without exposing its secret. It expires by itself.",
                    upstream=UPSTREAM,
                )
            self._parsed(("preauthkeys", "expire", "--id", key.id), lambda output: output)

        self._in_dialect(expire)

    def _in_dialect(self, operation: Callable[[Dialect], Parsed]) -> Parsed:
        """Run a command whose options depend on the release. Repeat it if the server was upgraded in the meantime."""
        dialect = self._current_dialect()
        try:
            return operation(dialect)
        except cli.UsageError:
            # A refused command had no effect, so it is safe to repeat it.
            self._dialect = None
            if self._current_dialect() == dialect:
                raise
            return operation(self._current_dialect())

    def _current_dialect(self) -> Dialect:
        """Detect the release by its version, or by its options if the version is not that of a release."""
        if self._dialect is None:
            output = self._run("version", "-o", "json")
            try:
                version = cli.last_json(output)["version"]
            except (ValueError, KeyError, TypeError):
                version = None
            dialect = dialect_of_version(version) or dialect_of_help(self._run("preauthkeys", "list", "--help"))
            if dialect is None:
                raise cli.malformed_output(("version",), self._target)
            self._dialect = dialect
        return self._dialect

    def _list(self, command: Sequence[str], parse: Callable[[Any], Parsed]) -> list[Parsed]:
        def parse_list(items: Any) -> list[Parsed]:
            # Up to 0.29, an empty list is null.
            if not isinstance(items, list | None):
                raise TypeError("not a list")
            return [parse(item) for item in items or ()]

        return self._parsed(command, parse_list)

    def _parsed(self, command: Sequence[str], parse: Callable[[Any], Parsed]) -> Parsed:
        """Run a command, and parse its JSON output after renaming the members as in the REST API."""
        # `-o` and `json` are two arguments, because `-o=json` would not disable log lines.
        output = self._run(*command, "-o", "json")
        if not output.strip():
            raise TransientError(f"{cli.describe(command)} in {self._target} wrote no output.", upstream=UPSTREAM)
        with well_formed(cli.malformed_output(command, self._target)):
            return parse(cli.last_json(output))

    def _run(self, *arguments: str) -> str:
        """Run a command and return its output. An ApiError means that it failed, or that its result is unknown."""
        try:
            target, output = self._pod.run((cli.PROGRAM, *arguments))
        except ApiError:
            self._on_outcome("no_answer")
            raise
        if self._target is None or target.pod.uid != self._target.pod.uid:
            # Another pod can run another release.
            self._dialect = None
        self._target = target
        if output.exit_status != 0:
            error = cli.explain_cli_failure(arguments, target, output)
            self._on_outcome("server_error" if isinstance(error, TransientError) else "refused")
            raise error
        self._on_outcome("ok")
        return output.stdout.decode(errors="replace")
