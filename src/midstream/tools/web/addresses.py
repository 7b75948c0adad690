"""Which addresses `web_fetch` may connect to: public ones, however they are written.

The check is made on the address that is connected to, after the name was resolved. So it holds for every spelling of an
address (decimal, hexadecimal, octal, IPv6-mapped), for redirects, and for names that resolve differently each time.
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
    """Whether `address` is a public unicast address, and so is any IPv4 address inside it."""
    if isinstance(address, ipaddress.IPv6Address) and address.is_site_local:
        return False  # deprecated, but routed inside some networks; Python counts it as global
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    return all(is_public(inner) for inner in _inside(address))


def _inside(address: IPAddress) -> list[ipaddress.IPv4Address]:
    """IPv4 addresses that an IPv6 address leads to: 6to4 and Teredo. Mapped and NAT64 addresses are reserved, so they
    are not public anyway."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = [address.sixtofour, *(address.teredo or ())]
    return [one for one in found if one is not None]


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only, and to the `allowed` ones, written `host:port`."""

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
        # The address, not the name: asked again, the name could mean another address.
        return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise AddressRefused("Unix sockets are not reachable")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _checked(self, host: str, port: int) -> str:
        """An address of `host`. Raises `AddressRefused` if any of its addresses is not public."""
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
