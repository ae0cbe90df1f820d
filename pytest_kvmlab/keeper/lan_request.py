"""What is asked of the process that makes the networks of a lab, as data: one JSON document.

A guest that breaks out of its QEMU can reach the keeper's socket, and what is written here becomes command
lines. So whatever comes in is bounded, and names and addresses are of a known form.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any, TypeVar

UPLINK_SUBNET = IPv4Network("198.18.0.0/24")
"""Between a lan and what leads out of it: of a range for measurements (RFC 2544), so nobody's LAN."""

MOST_NETWORKS, MOST_HOSTS = 8, 64
LONGEST = 65_536
"""Bytes of a request, more than the largest one that is allowed."""

_LAN = re.compile(r"[a-z0-9][a-z0-9-]{0,19}")
_NETWORK = re.compile(r"[a-z][a-z0-9-]{0,30}")
# Of a device: the most that Linux allows (linux/if.h, IFNAMSIZ), none of which `ip` takes for an option.
_DEVICE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
_OWN_DEVICE = re.compile(r"k[a-z][a-z0-9]{1,13}")
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")  # the lowest bit of the first byte: a group's
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"  # RFC 1123 section 2.1
_HOST = re.compile(_LABEL)
_DOMAIN = re.compile(rf"(?=.{{1,200}}$){_LABEL}(\.{_LABEL})*")

_Field = TypeVar("_Field")


@dataclass(frozen=True)
class LanHost:
    """A network card of a guest.

    Attributes:
        mac: its MAC address, in small letters.
        address: the IPv4 address that it gets; None leaves it to the DHCP server of a real LAN.
        name: the name that the others find it by.
        tap: a TAP device to make for it, `k` and more letters; None if somebody else makes it.
    """

    mac: str
    address: str | None = None
    name: str | None = None
    tap: str | None = None


@dataclass(frozen=True)
class LanNetwork:
    """A network of a lab.

    Attributes:
        name: its name in the lab.
        bridge: the bridge to make, `kb` and more letters.
        gateway: our own address with the length of its prefix, `10.77.0.1/24`; None on a real LAN, where
            nothing of ours has an address or gives one away.
        domain: the domain of the names in it.
        uplink: whether it has a way out, by way of `pytest_kvmlab.keeper.uplink`.
        port_on: the bridge of the host to be plugged into, `br0`, by the owner of the lab.
        hosts: the cards in it.
    """

    name: str
    bridge: str
    gateway: str | None = None
    domain: str | None = None
    uplink: bool = False
    port_on: str | None = None
    hosts: tuple[LanHost, ...] = ()


@dataclass(frozen=True)
class LanRequest:
    """The networks of one use of a lab.

    Attributes:
        lan: names it among those of the run: `gw0-3`.
        networks: what to make.
    """

    lan: str
    networks: tuple[LanNetwork, ...]


def as_document(request: LanRequest) -> dict[str, Any]:
    """Write a request as what JSON knows."""
    return asdict(request)


def as_request(document: dict[str, Any]) -> LanRequest:
    """Read a request, from whoever sent it.

    Raises:
        ValueError: it asks for more than is allowed, or has a name or an address that is none.
    """
    match document:
        case {"lan": str(lan), "networks": list(networks), **rest} if not rest:
            wanted = tuple(_network(network) for network in _at_most(MOST_NETWORKS, networks))
            request = LanRequest(check_lan_name(lan), wanted)
        case _:
            raise ValueError("a lan has 'lan' and 'networks', and nothing else")
    _refuse_doubles(request)
    return request


def check_lan_name(name: str) -> str:
    """Accept the name of a lan, which becomes that of a folder.

    Raises:
        ValueError: it has other characters than small letters, digits and hyphens, or more than 20.
    """
    return _matching(_LAN)(name)


def _network(document: object) -> LanNetwork:
    match document:
        case {
            "name": str(name),
            "bridge": str(bridge),
            "gateway": gateway,
            "domain": domain,
            "uplink": bool(uplink),
            "port_on": port_on,
            "hosts": list(hosts),
        }:
            network = LanNetwork(
                name=_matching(_NETWORK)(name),
                bridge=_matching(_OWN_DEVICE)(bridge),
                gateway=_unless_none(_gateway, gateway),
                domain=_unless_none(_matching(_DOMAIN), domain),
                uplink=uplink,
                port_on=_unless_none(_matching(_DEVICE), port_on),
                hosts=tuple(_host(host) for host in _at_most(MOST_HOSTS, hosts)),
            )
            return _consistent(network)
    raise ValueError(f"not a network: {str(document)[:200]}")


def _host(document: object) -> LanHost:
    match document:
        case {"mac": str(mac), "address": address, "name": name, "tap": tap}:
            return LanHost(
                mac=_matching(_MAC)(mac),
                address=_unless_none(lambda text: str(IPv4Address(text)), address),
                name=_unless_none(_matching(_HOST), name),
                tap=_unless_none(_matching(_OWN_DEVICE), tap),
            )
    raise ValueError(f"not a network card: {str(document)[:200]}")


def _consistent(network: LanNetwork) -> LanNetwork:
    """Refuse addresses where they cannot be, and ways out that lead nowhere."""
    if (network.gateway is None) != (network.port_on is not None):
        raise ValueError(f"{network.name}: a network has either a gateway of ours or a port on a bridge")
    if network.gateway:
        inside = IPv4Interface(network.gateway).network
        addresses = [IPv4Address(host.address) for host in network.hosts if host.address]
        if strange := [str(address) for address in addresses if address not in inside]:
            raise ValueError(f"{network.name}: not in {inside}: {', '.join(strange)}")
        if inside.overlaps(UPLINK_SUBNET):
            raise ValueError(f"{network.name}: {inside} overlaps {UPLINK_SUBNET}, which uplinks use")
    elif network.uplink:
        raise ValueError(f"{network.name}: only a network with a gateway of ours has an uplink")
    return network


def _gateway(text: str) -> str:
    if "/" not in text:
        raise ValueError(f"no prefix length in {text}")
    return str(IPv4Interface(text))


def _refuse_doubles(request: LanRequest) -> None:
    """Refuse a device that is named twice; what else may be there once is the lab file's business."""
    networks = request.networks
    bridges = [device for network in networks for device in (network.bridge, gateway_port(network.bridge))]
    devices = [*bridges, *taps(request)]
    for kind, names in (("name", [network.name for network in networks]), ("device", devices)):
        if len(set(names)) < len(names):
            raise ValueError(f"one {kind} is there twice: {', '.join(sorted(names))}")


def taps(request: LanRequest) -> Iterator[str]:
    """Go through the TAPs to make."""
    return (host.tap for network in request.networks for host in network.hosts if host.tap)


def gateway_port(bridge: str) -> str:
    """Name the port through which our own address is on a bridge: as the bridge, but `kv`."""
    return f"kv{bridge[2:]}"


def _matching(form: re.Pattern[str]) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not form.fullmatch(text):
            raise ValueError(f"not of the form {form.pattern}: {text[:100]!r}")
        return text

    return check


def _unless_none(check: Callable[[str], _Field], value: object) -> _Field | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"neither a text nor nothing: {str(value)[:100]}")
    return None if value is None else check(value)


def _at_most(limit: int, things: list[object]) -> list[object]:
    if len(things) > limit:
        raise ValueError(f"{len(things)}, where {limit} are the most")
    return things
