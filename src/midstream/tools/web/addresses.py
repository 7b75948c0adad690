"""Restricts `web_fetch` to public addresses.

The resolved address of each connection is checked. So the check covers every spelling of an address (decimal,
hexadecimal, octal, IPv6-mapped), redirects, and names that resolve differently each time.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection, Iterable
from typing import Any

import httpcore

from midstream.tools.errors import ToolError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressRefused(ToolError):
    """The address is not public."""


def is_public(address: IPAddress) -> bool:
    """Whether `address`, and any IPv4 address embedded in it, is a public unicast address."""
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return False  # deprecated, but routed in some networks; Python considers it global
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    return all(is_public(inner) for inner in _inside(address))


def _inside(address: IPAddress) -> list[ipaddress.IPv4Address]:
    """Return the IPv4 addresses embedded in an IPv6 address: 6to4 and Teredo. Mapped and NAT64 addresses are reserved,
    so they are never public."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [address.sixtofour, *(address.teredo or ())]
    return [one for one in found if one is not None]


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects only to public addresses, and to the `allowed` ones (`host:port`)."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._allowed = frozenset(allowed)
        self._network: Any = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        address = await self._checked(host, port)
        # The address, not the name, which could resolve to another address now.
        return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise AddressRefused("Unix sockets are not reachable")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _checked(self, host: str, port: int) -> str:
        """Return an address of `host`. Raises `AddressRefused` if any of its addresses is not public."""
        found = await _resolved(host, port)
        if f"{host}:{port}" not in self._allowed:
            for text in found:
                if not is_public(ipaddress.ip_address(text.partition("%")[0])):
                    raise AddressRefused(f"{host} is not a public address")
        return found[0]


async def _resolved(host: str, port: int) -> list[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ToolError(f"there is no host '{host[:100]}'") from None
    return [str(entry[4][0]) for entry in found]
