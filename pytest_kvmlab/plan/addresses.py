"""Which addresses networks and network cards get, where nobody chose them; and which the host has already."""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from itertools import chain, islice

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.conflicts import DEFAULT_PREFIX
from pytest_kvmlab.spec.network import LabNetwork

# A part of 10.0.0.0/8 (RFC 1918) that is neither QEMU's (10.0), nor the usual choice of routers, VPNs and
# container networks, which begin at its start or end: 40 times 256 networks of the default size.
_FIRST = int(IPv4Address("10.200.0.0"))
_CHOICE = 40 * 256


def choose_subnets(
    networks: Mapping[str, LabNetwork], avoid: Iterable[IPv4Network] = ()
) -> dict[str, IPv4Network]:
    """Give every network that the lab makes its addresses.

    Args:
        networks: the networks of the lab, by name.
        avoid: what the host has routes to, where a lab and the host are on one LAN.

    Returns:
        By name, the subnet that was written, or a /24 from 10.200.0.0 to 10.239.255.0 that follows from the
        name: the same in every run, unless it overlaps another or one to avoid.

    Raises:
        ConfigError: no such subnet is left.
    """
    ours = {name: network.subnet for name, network in networks.items() if network.is_ours}
    taken = [*(subnet for subnet in ours.values() if subnet), *_specific(avoid)]
    chosen: dict[str, IPv4Network] = {}
    for name, written in ours.items():
        chosen[name] = written or _free_subnet(name, taken)
        taken.append(chosen[name])
    return chosen


def _free_subnet(name: str, taken: Collection[IPv4Network]) -> IPv4Network:
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
    for step in range(_CHOICE):
        number = (start + step) % _CHOICE
        subnet = IPv4Network((_FIRST + number * 2 ** (32 - DEFAULT_PREFIX), DEFAULT_PREFIX))
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise ConfigError(
        f"no subnet is left for network '{name}': this host has routes to all that would be chosen",
        f'choose one: [network.{name}] subnet = "192.168.177.0/24"',
    )


def gateway_of(subnet: IPv4Network) -> IPv4Address:
    """Tell the host's own address in a network that is made for a lab: the first one."""
    return subnet[1]


def free_addresses(subnet: IPv4Network, fixed: Collection[IPv4Address]) -> Iterator[IPv4Address]:
    """Go through the addresses that nobody has.

    Args:
        subnet: the network.
        fixed: the addresses that were written.

    Yields:
        Upwards from the second one, behind the gateway's: every address of a network card that is not fixed.
    """
    return (address for address in islice(subnet.hosts(), 1, None) if address not in fixed)


def overlapping(
    subnets: Mapping[str, IPv4Network], routes: Iterable[IPv4Network]
) -> list[tuple[str, IPv4Network]]:
    """Compare the networks of a lab with those that a host knows already.

    Args:
        subnets: by the names of their networks.
        routes: the destinations in the host's routing table; default routes overlap nothing.

    Returns:
        Each name with a route that its subnet overlaps, in the order of the names.
    """
    known = list(_specific(routes))
    pairs = chain.from_iterable(((name, route) for route in known) for name in subnets)
    return [(name, route) for name, route in pairs if subnets[name].overlaps(route)]


def _specific(routes: Iterable[IPv4Network]) -> Iterator[IPv4Network]:
    """Leave out the default route, and the two halves of it that VPN clients set to go before it."""
    return (route for route in routes if route.prefixlen > 1)
