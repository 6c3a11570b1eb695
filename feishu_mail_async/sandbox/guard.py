"""Who may call a sandbox: programs, and no page of another server that a browser of this machine shows."""

import hmac
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

__all__ = ["TOKEN_HEADER", "Guard"]

TOKEN_HEADER: Final = "X-Sandbox-Token"  # noqa: S105 - a header's name
_HTTP_PORT: Final = 80


@dataclass(frozen=True, slots=True)
class Guard:
    """The guard of a sandbox.

    Attributes:
        address: where the sandbox listens.
        token: opens the sandbox's own endpoints.
    """

    address: str
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def stranger(self, port: int | None, hosts: Sequence[str], origins: Sequence[str]) -> str | None:
        """Say why a request is none of a program's that means this sandbox; None if it may be.

        A page elsewhere can send requests here, but the browser names that page's server in Origin. It can also
        have its own name point here (DNS rebinding), but then that name stands in Host. A sandbox that listens
        beyond this machine is called by names that it cannot know.

        Args:
            port: where the sandbox listens.
            hosts: the Host headers.
            origins: the Origin headers.
        """
        if len(hosts) != 1 or not (_is_here(hosts[0], port) or not _is_loopback(self.address)):
            return f"Host: this sandbox is at {self.address}, port {port}; call it by this address or localhost"
        if list(origins) not in ([], [f"http://{hosts[0]}"]):
            return "Origin: this sandbox takes no requests from pages of other servers"
        return None

    def intruder(
        self, remote: str | None, port: int | None, hosts: Sequence[str], tokens: Sequence[str]
    ) -> str | None:
        """Say why a request may not control the sandbox; None if it may.

        Args:
            remote: the caller's IP address.
            port: where the sandbox listens.
            hosts: the Host headers.
            tokens: the headers of that name.
        """
        if remote is None or not _is_loopback(remote) or not all(_is_here(host, port) for host in hosts):
            return "only from this machine"
        # Of bytes, because a header may hold what is no ASCII.
        if len(tokens) != 1 or not hmac.compare_digest(tokens[0].encode(errors="replace"), self.token.encode()):
            return f"{TOKEN_HEADER}: give the control_token of this sandbox, which it shows when it starts"
        return None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_here(host: str, port: int | None) -> bool:
    """Whether a Host header names this machine as it calls itself, and the port."""
    name, colon, given = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, given = host, str(_HTTP_PORT)
    name = name.removeprefix("[").removesuffix("]") if name.startswith("[") else name
    return given == str(port) and (name.lower() == "localhost" or _is_loopback(name))
