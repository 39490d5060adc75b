"""Send one JSON request; name what went wrong."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from threading import Timer
from typing import Any, TypeVar

import httpx

from lifecycle.domain.errors import ApiError, AuthError, ConfigError, ResponseError, TransientError

Result = TypeVar("Result")

# Given seconds and what to do then, a block that does it if it lasts longer.
Timing = Callable[[float, Callable[[], None]], AbstractContextManager[None]]

# The largest honest answer is a list of nodes: some 4 MiB, where Headscale itself gives up.
MAX_ANSWER_BYTES = 32 * 1024 * 1024

# More than any service means by "later"; a larger number may not even fit a timedelta.
_LONGEST_RETRY_AFTER = timedelta(days=1)

_THROTTLED = 429
_SERVER_ERRORS = range(500, 600)
_SUCCESS = range(200, 300)
_REDIRECTS = range(300, 400)


class Credential:
    """A secret that is read again when it was refused: tokens are rotated in their files.

    Args:
        read: gives the secret as it is now; raises an error of `errors.py`.
        name: the setting it comes from, for messages.
    """

    def __init__(self, read: Callable[[], str], *, name: str) -> None:
        self.name = name
        self._read = read
        self._value: str | None = None

    def __repr__(self) -> str:
        return f"Credential({self.name})"

    @property
    def value(self) -> str:
        """The secret, read once until it is refused."""
        if self._value is None:
            self._value = self._read()
        return self._value

    def read_again(self) -> None:
        """Read the secret anew, refused or not; one that cannot be read stays as it was."""
        self._value = self._read()

    def renew(self, refused: str) -> bool:
        """Read the secret again after this one was refused; whether it is another now."""
        if self._value == refused:
            self._value = self._read()
        return self._value != refused


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole HTTP answer.

    Attributes:
        text: the body of an answer that is no JSON, undecodable bytes replaced; "" for one that is.
        json: the parsed body when its content type is JSON; None when it is not, or is no JSON.
    """

    status: int
    headers: Mapping[str, str]
    text: str
    json: Any

    @property
    def retry_after(self) -> timedelta | None:
        """How long the service asked us to stay away, in seconds or as a date; None when it did not."""
        text = self.headers.get("retry-after", "").strip()
        if not text:
            return None
        try:
            return timedelta(seconds=min(max(float(text), 0.0), _LONGEST_RETRY_AFTER.total_seconds()))
        except ValueError:
            pass
        try:
            at = parsedate_to_datetime(text).astimezone(UTC)
        except (ValueError, OverflowError):
            return None
        return min(max(at - datetime.now(UTC), timedelta()), _LONGEST_RETRY_AFTER)


@contextmanager
def timer_thread(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Act, from another thread, if the block lasts longer."""
    timer = Timer(seconds, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class JsonClient:
    """One service, spoken to in JSON with a bearer token.

    Args:
        http: bears the base address; follows no redirects.
        upstream: the upstream in an operator's words.
        address: the setting that the base address comes from, for messages.
        credential: the bearer token.
        timeout: for one whole request, the body included.
        explain: names what a refusal means, knowing the service; None = nothing special about it.
        observe: told of every request that ended: its outcome in one word.
        timer: ends a request that takes longer than it may.
    """

    def __init__(
        self,
        http: httpx.Client,
        *,
        upstream: str,
        address: str,
        credential: Credential,
        timeout: timedelta,
        explain: Callable[[str, Answer], ApiError | None],
        observe: Callable[[str], None] = lambda _outcome: None,
        timer: Timing = timer_thread,
    ) -> None:
        self._http = http
        self._upstream = upstream
        self._address = address
        self._credential = credential
        self._timeout_s = timeout.total_seconds()
        self._explain = explain
        self._observe = observe
        self._breaker = _Breaker(timer)

    def read_token_again(self) -> None:
        """Take the token that is in place now."""
        self._asked(self._credential.read_again)

    def token_begins_with(self, beginning: str) -> bool:
        """Whether the token in use begins like this; nobody else gets to see it."""
        return self._asked(lambda: self._credential.value).startswith(beginning)

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        authorized: bool = True,
        members: Collection[str] | None = None,
    ) -> Answer:
        """Send a request once, or twice when its token was refused and another one is there by now.

        Args:
            method: GET, POST and so on.
            path: below the base address; with a slash.
            params: behind the question mark.
            body: a JSON value; None = none.
            authorized: whether the token is shown.
            members: of the answer's objects only these are kept, at any depth; None = all.

        Returns:
            The answer, with a status of success; its `json` may be None.

        Raises:
            ApiError: anything else, as the kind that it is.
        """
        token = self._asked(lambda: self._credential.value) if authorized else None
        try:
            return self._send_once(method, path, params=params, body=body, token=token, members=members)
        except AuthError:
            # A refused request had no effect, so that sending it again is safe.
            if token is None or not self._asked(partial(self._credential.renew, token)):
                raise
            return self._send_once(
                method, path, params=params, body=body, token=self._credential.value, members=members
            )

    def _asked(self, credential: Callable[[], Result]) -> Result:
        try:
            return credential()
        except ConfigError as error:
            # It could be read at the start: a Secret that is mounted anew comes back, and ends no loop.
            raise AuthError(str(error), upstream=self._upstream) from error

    def _send_once(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None,
        body: Any,
        token: str | None,
        members: Collection[str] | None,
    ) -> Answer:
        what = f"{method} {path}"
        try:
            response, content = self._exchange(method, path, params=params, body=body, token=token, what=what)
            answer = _answer(response, content, members)
            error = self._error(what, answer)
        except ApiError:
            self._observe("no_answer")
            raise
        if error is None:
            self._observe("ok")
            return answer
        self._observe(_outcome(error))
        raise error

    def _exchange(
        self, method: str, path: str, *, params: Mapping[str, str] | None, body: Any, token: str | None, what: str
    ) -> tuple[httpx.Response, bytearray]:
        headers = {"Accept": "application/json"}
        content = None
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body).encode()
        received = bytearray()
        try:
            with (
                self._breaker.after(self._timeout_s),
                self._http.stream(
                    method,
                    path,
                    params=params,
                    content=content,
                    headers=headers,
                    timeout=self._timeout_s,
                    extensions={"trace": self._breaker.trace},
                ) as response,
            ):
                for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > MAX_ANSWER_BYTES:
                        raise ResponseError(
                            f"{self._upstream}: the answer to {what} is larger than {MAX_ANSWER_BYTES >> 20} MiB",
                            upstream=self._upstream,
                            status=response.status_code,
                        )
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            if isinstance(error, httpx.TimeoutException) or self._breaker.broke:
                raise self._timed_out(what) from error
            # Its text can hold an address with a password in it; its kind and cause cannot.
            raise TransientError(
                f"{self._upstream} at {self._host} could not be reached for {what}: {_cause(error)}; "
                f"is it running, and is {self._address} right?",
                upstream=self._upstream,
            ) from None
        return response, received

    def _error(self, what: str, answer: Answer) -> ApiError | None:
        if answer.status in _SUCCESS:
            return None
        special = self._explain(what, answer)
        if special is not None:
            return special
        status = answer.status
        if status == _THROTTLED:
            return TransientError(
                f"{self._upstream} asks for fewer requests ({what}: {status})",
                upstream=self._upstream,
                status=status,
                retry_after=answer.retry_after,
                throttled=True,
            )
        if status in _SERVER_ERRORS:
            return TransientError(
                f"{self._upstream}, or a proxy before it, is in trouble ({what}: {status}); its own log or status page "
                "tells more",
                upstream=self._upstream,
                status=status,
                retry_after=answer.retry_after,
            )
        if status in _REDIRECTS:
            return ResponseError(
                f"{self._upstream} at {self._host} redirects {what}: {status}; it is not followed, since the "
                "credentials would go along: set the address it points to",
                upstream=self._upstream,
                status=status,
            )
        return ResponseError(f"{self._upstream} refused {what}: {status}", upstream=self._upstream, status=status)

    def _timed_out(self, what: str) -> TransientError:
        return TransientError(
            f"{self._upstream} at {self._host} did not answer {what} within {self._timeout_s:g} s; "
            f"is it running, and is {self._address} right?",
            upstream=self._upstream,
        )

    @property
    def _host(self) -> str:
        url = self._http.base_url
        return f"{url.scheme}://{url.host}" + (f":{url.port}" if url.port else "")


class _Breaker:
    """Breaks the connection of a request that takes too long: the library's time-outs are for each read.

    Attributes:
        broke: it did, at the last request.
    """

    def __init__(self, timer: Timing) -> None:
        self.broke = False
        self._timer = timer
        self._stream: Any = None

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Note the connection that is used; httpcore tells it when it is made."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = info["return_value"]

    def after(self, seconds: float) -> AbstractContextManager[None]:
        """Break the connection if the block lasts longer."""
        self.broke = False
        return self._timer(seconds, self._break)

    def _break(self) -> None:
        self.broke = True
        if self._stream is not None:
            # It may be closed by now, which is as good.
            with suppress(OSError):
                self._stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def _answer(response: httpx.Response, content: bytearray, members: Collection[str] | None) -> Answer:
    text = content.decode(errors="replace")
    # Of a list of a thousand nodes each copy is a megabyte, which the process would keep.
    content.clear()
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json"):
        with suppress(ValueError, RecursionError):
            # A refusal is read whole.
            some = members is not None and response.status_code in _SUCCESS
            value = json.loads(text, object_hook=partial(_only, members or ()) if some else None)
            return Answer(response.status_code, response.headers, "", value)
    return Answer(response.status_code, response.headers, text, None)


def _only(members: Collection[str], value: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name in members}


def _cause(error: BaseException) -> str:
    """The innermost reason, such as "Connection refused" or "certificate verify failed"."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__ or error
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__


def _outcome(error: ApiError) -> str:
    if isinstance(error, TransientError):
        return "throttled" if error.throttled else "server_error"
    return "refused"
