"""Why a call has no answer: the reasons in words, with the remedy, and whether another attempt may help."""

import os
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from errno import errorcode
from http import HTTPStatus
from typing import Final

import aiohttp

from feishu_mail_async._api.protocol import CallEnd, redact
from feishu_mail_async._text import escape

__all__ = ["BrokenOff", "Failure", "failure_of"]

# aiohttp raises these before the first byte of the request is written: then the call certainly never left.
_BEFORE_THE_REQUEST: Final = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ServerFingerprintMismatch,
    aiohttp.ClientHttpProxyError,
    aiohttp.InvalidURL,
)

# Verify codes of OpenSSL (x509_vfy.h). A certificate outside its validity may pass: a clock is set, or it is
# renewed.
_OUT_OF_ITS_TIME: Final = {9, 10}
_ANOTHER_NAME: Final = {62, 64}
# Reasons of OpenSSL for handshakes that no retry can save.
_NO_TLS: Final = {"HTTP_REQUEST", "WRONG_VERSION_NUMBER"}
_NO_TERMS: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    "TLSV1_ALERT_PROTOCOL_VERSION",
    "UNSUPPORTED_PROTOCOL",
}
# 4xx answers of a proxy that another attempt may change.
_PROXY_MAY_PASS: Final = {408, 425, 429}


@dataclass(frozen=True, slots=True)
class Failure:
    """A call without an answer.

    Attributes:
        end: LOST or NEVER_LEFT.
        reason: the reason, and the remedy if it is lasting.
        lasting: true if no call will leave until a setting is changed.
    """

    end: CallEnd
    reason: str
    lasting: bool = False


class BrokenOff(aiohttp.ClientError):
    """A connection that ended; the cause says how. It is none of the errors on which aiohttp repeats a request."""


def failure_of(error: Exception, secrets: Iterable[str], *, left: bool, patience: float) -> Failure:
    """Return why a call has no answer.

    Args:
        error: what was raised.
        secrets: what its text must not show.
        left: a part of the request may have been written.
        patience: seconds that the exchange was given.
    """
    reason = _reason(error, secrets)
    if not left or isinstance(error, _BEFORE_THE_REQUEST):
        return Failure(CallEnd.NEVER_LEFT, reason, _lasts(error))
    if isinstance(error, TimeoutError):
        reason = f"none within {patience:g} s"
    return Failure(CallEnd.LOST, reason)


def _reason(error: Exception, secrets: Iterable[str]) -> str:
    """Return an exception's message without its data: some of aiohttp's hold the request's headers."""
    try:
        text = _described(error)
    except Exception:  # noqa: BLE001 - an exception made by hand may lack what its class promises
        text = type(error).__name__
    return escape(redact(text, secrets)[:300])


def _described(error: Exception) -> str:
    match error:
        case BrokenOff(__cause__=Exception() as cause):
            return _described(cause)
        case aiohttp.ClientConnectorError(os_error=ssl.SSLError() as failed):
            return f"{error.host}:{error.port}: {_no_tls(failed)}"
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int() as number, strerror=said) as failed):
            # asyncio's text names the call that failed; the number gives the reason, if it is a system error.
            system = number in errorcode and not isinstance(failed, socket.gaierror)
            return f"{error.host}:{error.port}: {os.strerror(number) if system else said}"
        case aiohttp.ClientHttpProxyError():
            return _refused_by_proxy(error.status, f"HTTP {error.status} {error.message}")
        case aiohttp.ClientResponseError():
            return f"HTTP {error.status} {error.message}"
        case _:
            return f"{type(error).__name__}: {error}"


def _no_tls(wrong: ssl.SSLError) -> str:
    """Return the reason why no TLS connection came about, and the remedy."""
    if not isinstance(wrong, ssl.SSLCertVerificationError):
        why = "no TLS is spoken there" if wrong.reason in _NO_TLS else "no TLS connection came about"
        return f"{why} ({(wrong.reason or str(wrong)).lower().replace('_', ' ')})"
    if wrong.verify_code in _OUT_OF_ITS_TIME:
        return f"its certificate is not valid by this machine's clock ({wrong.verify_message}): check the clock"
    if wrong.verify_code in _ANOTHER_NAME:
        return (
            f"its certificate is another host's ({wrong.verify_message}): check base_url, and the proxy or the "
            "network's login page that may answer in its place"
        )
    return (
        f"its certificate is not trusted ({wrong.verify_message}): no authority known here has signed it. If a "
        "proxy or a company signs for it, name the file with that authority's certificate in SSL_CERT_FILE"
    )


def _refused_by_proxy(status: int, said: str) -> str:
    """Return the meaning of a proxy's refusal of the tunnel, and the remedy."""
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return f"the proxy wants credentials ({said}): put them in HTTPS_PROXY, http://USER:PASSWORD@HOST:PORT"
    if status == HTTPStatus.FORBIDDEN:
        return f"the proxy forbids this host ({said}): have it allowed, or go without the proxy, by NO_PROXY"
    if _proxy_may_pass(status):
        return f"the proxy could not connect ({said})"
    return f"the proxy refuses to connect ({said}): check that HTTPS_PROXY names a proxy"


def _proxy_may_pass(status: int) -> bool:
    return status >= HTTPStatus.INTERNAL_SERVER_ERROR or status in _PROXY_MAY_PASS


def _lasts(error: Exception) -> bool:
    """Return whether calls are kept from leaving until a setting is changed."""
    match error:
        case aiohttp.ClientConnectorError(os_error=ssl.SSLCertVerificationError() as wrong):
            return wrong.verify_code not in _OUT_OF_ITS_TIME
        case aiohttp.ClientConnectorError(os_error=ssl.SSLError(reason=said)):
            return said in _NO_TLS | _NO_TERMS
        case aiohttp.ClientHttpProxyError():
            return not _proxy_may_pass(error.status)
        case aiohttp.ServerFingerprintMismatch() | aiohttp.InvalidURL():
            return True
        case _:
            # An error that is not the network's is a mistake in the session's settings or hooks.
            return not isinstance(error, aiohttp.ClientError | OSError)
