"""Which addresses of the network may be asked: those that are the public's.

A list of URLs is somebody else's, and a server may redirect to where it likes: without this the
downloader could be sent to services of the own network, such as the metadata server of a cloud.
"""

import ipaddress
import socket

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # the last 32 bits are an IPv4 address

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """A host that may not be asked."""


def is_public(text: str) -> bool:
    """Whether an IP address is neither private, loopback, link-local nor reserved, also where it
    wraps an IPv4 address that is."""
    address = _unwrapped(ipaddress.ip_address(text))
    return address.is_global and not (address.is_multicast or address.is_reserved)


def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
    """The IP addresses of a host, to connect to these and not to the name: a second look-up could
    give others.

    Raises:
      Refused: one of them is not public, unless `allow_private`.
      OSError: there are none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise Refused(f"{host!r} cannot be the name of a host") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not allow_private and not is_public(address):
            raise Refused(f"{host} is at the private address {address}")
    return addresses


def _unwrapped(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour or address
