"""Whether an address of a peer is in a network that the operator names."""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network


def is_in(address: str, networks: Iterable[Network]) -> bool:
    """Tell whether an address is in one of the networks; an IPv4 address that IPv6 carries counts as IPv4."""
    found = ip_address(address)
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return any(found in network for network in networks)
