"""A single HTTP exchange over aiohttp, with time and size limits. It knows no policy.

    exchange   one call and its answer, on a connection of its own
    failures   why there is no answer      streaming   a request's body, in pieces

All results come back as values: a `Reply`, or a `CallEnd` with the reason. That keeps aiohttp's exceptions, some
of which hold the request's headers and so the token, inside this module.
"""

from .exchange import NOT_MADE, Transport
from .failures import Failure

__all__ = ["NOT_MADE", "Failure", "Transport"]
