"""Access rules of a sandbox: programs may call it; pages of other servers, shown in a browser here, may not."""

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
    """The access check of a sandbox.

    Attributes:
        address: the IP address on which the sandbox listens.
        token: the secret that the control endpoints require.
    """

    address: str
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def stranger(self, port: int | None, hosts: Sequence[str], origins: Sequence[str]) -> str | None:
        """Return the reason to refuse a request as one from a foreign web page; None if it is acceptable.

        A foreign page can send requests here, but the browser names that page's server in Origin. The page can
        also have its own name point here (DNS rebinding), but then that name is in Host. A sandbox that listens
        beyond this machine is called by names that it cannot know, so Host is checked only on loopback.

        Args:
            port: the port on which the sandbox listens.
            hosts: the values of the Host headers.
            origins: the values of the Origin headers.
        """
        if len(hosts) != 1 or not (_is_here(hosts[0], port) or not _is_loopback(self.address)):
            return f"Host: this sandbox is at {self.address}, port {port}; call it by this address or localhost"
        if list(origins) not in ([], [f"http://{hosts[0]}"]):
            return "Origin: this sandbox takes no requests from pages of other servers"
        return None

    def intruder(
        self, remote: str | None, port: int | None, hosts: Sequence[str], tokens: Sequence[str]
    ) -> str | None:
        """Return the reason why a request may not control the sandbox; None if it may.

        Args:
            remote: the caller's IP address.
            port: the port on which the sandbox listens.
            hosts: the values of the Host headers.
            tokens: the values of the X-Sandbox-Token headers.
        """
        if remote is None or not _is_loopback(remote) or not all(_is_here(host, port) for host in hosts):
            return "only from this machine"
        # Compared as bytes: compare_digest rejects non-ASCII text, which a header may hold.
        if len(tokens) != 1 or not hmac.compare_digest(tokens[0].encode(errors="replace"), self.token.encode()):
            return f"{TOKEN_HEADER}: give the control_token of this sandbox, which it shows when it starts"
        return None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_here(host: str, port: int | None) -> bool:
    """Return whether a Host header names localhost or a loopback address, and the port."""
    name, colon, given = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, given = host, str(_HTTP_PORT)
    name = name.removeprefix("[").removesuffix("]") if name.startswith("[") else name
    return given == str(port) and (name.lower() == "localhost" or _is_loopback(name))
