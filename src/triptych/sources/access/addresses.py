"""Which network addresses belong to everybody: this machine and private networks do not."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterable

_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")  # an IPv4 address, for networks that have only IPv6


class PrivateError(OSError):
    """An address of this machine or of a private network, where only public ones may be read."""


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network; False for what is no IP address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            found = inner
    return found.is_global and not found.is_multicast


def refuse_private(host: str, addresses: Iterable[str]) -> None:
    """
    Raises:
        PrivateError: if any of a host's addresses is not public.
    """
    for address in addresses:
        if not is_public(address):
            shown = host if host == address else f"{host} ({address})"
            raise PrivateError(
                errno.EACCES,
                f"{shown} is an address of this machine or of a private network; set data.allow_private: true "
                "(--allow-private) to read those that records name",
            )
