"""Explain failures of name resolution, connections, proxies and TLS, with messages that name the setting to check."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

import httpcore
import httpx

from lifecycle.clients.network import ResolutionError, UnreachableError
from lifecycle.clients.response import excerpt
from lifecycle.clients.upstream import Upstream
from lifecycle.domain.errors import ApiError, ResponseError, TransientError
from lifecycle.domain.proxy import Proxy

# What different versions of OpenSSL call the error that the peer does not speak TLS.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG"})

# OpenSSL's codes for a certificate without a trusted issuer, and for a certificate of another host name or address.
# Source: <openssl/x509_vfy.h>.
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})
_OTHER_NAME = frozenset({62, 64})


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of an upstream (such as Headscale), and the proxy to it, for messages.

    Attributes:
        url: the URL without credentials.
    """

    upstream: Upstream
    url: str
    proxy: Proxy | None

    @property
    def via(self) -> str:
        """The words of a message that name the proxy; "" if there is none."""
        return f" through the proxy {self.proxy.address} ({self.proxy.setting})" if self.proxy else ""

    @property
    def is_plain_http(self) -> bool:
        """True if requests are sent without TLS."""
        return self.url.startswith("http:")

    def https_required_error(self, what: str) -> ResponseError:
        """Return the error for a request (`what`) that was sent as plain HTTP to a port that expects TLS."""
        return ResponseError(
            f"{self.url} expects HTTPS ({what}). Write https:// instead of http:// in {self.upstream.url_setting}.",
            upstream=self.upstream.name,
        )


def explain_failure(error: Exception, *, what: str, endpoint: Endpoint, timeout_s: float) -> ApiError:
    """Return the error for a request without a complete response.

    Args:
        error: an error of httpx or httpcore.
        what: the request, for the message.
        timeout_s: the time budget of the request.
    """
    # The cause of an httpx error is an httpcore error. Its argument is an OSError.
    arguments = (error.__cause__ or error).args
    cause = next((argument for argument in arguments if isinstance(argument, OSError)), None)
    is_connecting = isinstance(cause, ResolutionError | UnreachableError)
    kind: type[ApiError] = TransientError
    name, proxy = endpoint.upstream.name, endpoint.proxy
    peer, setting = f"{name} at {endpoint.url}", endpoint.upstream.url_setting
    if is_connecting and proxy:
        peer, setting = f"The proxy {proxy.address}", proxy.setting
    check = f"Check that it is running and that {setting} is correct."
    match cause:
        case ResolutionError():
            text = f"{cause}, for {what}. Check {setting} and DNS in the pod."
        case UnreachableError() if isinstance(error, httpx.ConnectTimeout):
            text = (
                f"{peer} accepted no connection for {what} within {timeout_s:g} s. {check} Check also that no network "
                "policy drops the packets."
            )
        case UnreachableError():
            text = f"{peer} is unreachable for {what} ({cause}). {check}"
        case ssl.SSLError():
            kind, text = _explain_tls(cause, what=what, endpoint=endpoint)
        case _ if isinstance(error, httpx.ProxyError) and proxy is not None:
            # The text of the error begins with the HTTP status that the proxy returned. A retry cannot help with 4xx.
            # Other statuses, such as 502, can be temporary.
            reason = excerpt(str(error))
            kind = ResponseError if reason.startswith("4") else TransientError
            text = (
                f"The proxy {proxy.address} refused to connect to {endpoint.url} for {what} ({reason}). "
                f"Check {proxy.setting}."
            )
        case _ if isinstance(error, httpx.TimeoutException | httpcore.TimeoutException):
            text = f"{peer} did not respond to {what}{endpoint.via} within {timeout_s:g} s. {check}"
        case _:
            # The text of an httpx error is left out, because it can contain a URL with a password.
            is_malformed = isinstance(error, httpx.RemoteProtocolError)
            kind_of_error = "no valid HTTP response" if is_malformed else type(error).__name__
            reason = (cause and cause.strerror) or kind_of_error
            text = f"{peer} is unreachable for {what}{endpoint.via} ({reason}). {check}"
    if is_connecting:
        return TransientError(text, upstream=name, was_sent=False)
    return kind(text, upstream=name)


def _explain_tls(error: ssl.SSLError, *, what: str, endpoint: Endpoint) -> tuple[type[ApiError], str]:
    upstream = endpoint.upstream
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"The certificate of {upstream.name} at {endpoint.url} could not be verified ({error.verify_message}). "
        if error.verify_code in _UNKNOWN_AUTHORITY:
            text += f"Add the certificate of its authority to {upstream.ca_setting}."
        elif error.verify_code in _OTHER_NAME:
            text += f"In {upstream.url_setting}, use a host name that the certificate contains."
        else:
            text += "Check the certificate, and the clock of this machine."
        return TransientError, text
    if error.reason in _NOT_TLS:
        return ResponseError, (
            f"{endpoint.url} does not speak TLS on this port ({what}). Write http:// instead of https:// in "
            f"{upstream.url_setting}, or set the port of HTTPS."
        )
    reason = error.reason or type(error).__name__
    return TransientError, f"TLS with {upstream.name} at {endpoint.url} failed for {what} ({reason})."
