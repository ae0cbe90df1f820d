"""What was decided about the networks of one use of a lab: addresses before any guest has booted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from types import MappingProxyType

from pytest_kvmlab.plan.addresses import choose_subnets, free_addresses
from pytest_kvmlab.plan.guest import Card, StreamWire, TapWire
from pytest_kvmlab.plan.names import bridge_name, derived_mac, tap_name
from pytest_kvmlab.spec.guest import NetworkKeys
from pytest_kvmlab.spec.network import LabNetwork


@dataclass(frozen=True)
class LabInstance:
    """One use of a lab, of which a run may have several at once.

    Args:
        run_id: eight hexadecimal digits.
        name: tells it from the others of the run: `gw0-3`.
        avoid: subnets that are not to be chosen, because the host reaches them by a LAN that the lab is on.
    """

    run_id: str
    name: str
    avoid: tuple[IPv4Network, ...] = ()


@dataclass(frozen=True)
class Member:
    """A network card in a network.

    Args:
        guest: its guest's name in the lab.
        index: which card of the guest it is, from 0.
        mac: its MAC address.
        address: its address; `None` leaves it to the DHCP server of a real LAN.
        hostname: the guest's name, on the first of its cards in this network.
        tap: the name of its TAP device.
    """

    guest: str
    index: int
    mac: str
    address: IPv4Address | None
    hostname: str | None
    tap: str


@dataclass(frozen=True)
class NetworkPlan:
    """A network as it will be.

    Args:
        network: its name in the lab.
        bridge: the bridge that is made for it.
        port_on: the bridge of the host whose LAN it is a part of, if it is.
        stands_for: the bridge of a host in whose place it is, if it is simulated.
        uplink: whether guests reach the world behind the host.
        subnet: its addresses, of which the first is the gateway's; `None` on a real LAN, which has its own.
        domain: the domain of the guests' names.
        members: the cards in it.
    """

    network: str
    bridge: str
    port_on: str | None
    stands_for: str | None
    uplink: bool
    subnet: IPv4Network | None
    domain: str | None
    members: tuple[Member, ...]


def plan_networks(
    networks: Mapping[str, LabNetwork], cards: Mapping[str, Sequence[NetworkKeys]], instance: LabInstance
) -> dict[str, NetworkPlan]:
    """Decide everything about the networks of a lab.

    Fixed addresses stay as they were written. The other cards get, in the order of guests and cards, the
    lowest addresses that are left, from the second of the subnet upwards.

    Args:
        networks: the networks of the lab, by name; without conflicts (`pytest_kvmlab.spec.conflicts`).
        cards: the network cards of each guest, in the order of the lab.
        instance: the use of the lab.

    Returns:
        The plans by name; a network of mode `user` has none, because nothing is made for it.

    Raises:
        ConfigError: no subnet is left for a network that was given none.
    """
    subnets = choose_subnets(networks, instance.avoid)
    return {
        name: _plan(name, network, subnets.get(name), cards, instance)
        for name, network in networks.items()
        if network.mode != "user"
    }


def plan_cards(
    guest: str,
    cards: Sequence[NetworkKeys],
    networks: Mapping[str, NetworkPlan],
    ports: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Card, ...]:
    """Decide where the cards of a guest are plugged in.

    Args:
        guest: the guest's name in the lab.
        cards: its network cards.
        networks: the plans of the lab's networks.
        ports: the loopback port in the place of each TAP, where there are none.

    Returns:
        One for each of the cards, in their order; what is in no planned network is in user mode.
    """
    wired = {
        member.index: Card(_wire(member, ports), member.mac)
        for plan in networks.values()
        for member in plan.members
        if member.guest == guest
    }
    return tuple(wired.get(index, Card()) for index in range(len(cards)))


def _wire(member: Member, ports: Mapping[str, int]) -> TapWire | StreamWire:
    return StreamWire(ports[member.tap]) if member.tap in ports else TapWire(member.tap)


def _plan(
    name: str,
    network: LabNetwork,
    subnet: IPv4Network | None,
    cards: Mapping[str, Sequence[NetworkKeys]],
    instance: LabInstance,
) -> NetworkPlan:
    return NetworkPlan(
        network=name,
        bridge=bridge_name(instance.run_id, instance.name, name),
        port_on=None if network.is_ours else network.bridge,
        stands_for=network.bridge if network.simulated else None,
        uplink=network.uplink,
        subnet=subnet,
        domain=network.domain,
        members=tuple(_members(_cards_in(name, cards), subnet, instance, shared=not network.is_ours)),
    )


def _cards_in(network: str, cards: Mapping[str, Sequence[NetworkKeys]]) -> list[tuple[str, int, NetworkKeys]]:
    return [
        (guest, index, card)
        for guest, own in cards.items()
        for index, card in enumerate(own)
        if card.name == network
    ]


def _members(
    cards: Sequence[tuple[str, int, NetworkKeys]],
    subnet: IPv4Network | None,
    instance: LabInstance,
    *,
    shared: bool,
) -> Iterator[Member]:
    """The cards in a network. Where it is ours alone, MAC addresses are the same in every use of the lab.

    So a guest that was frozen in one use of it finds itself in its place in another one; the two networks
    never meet. On a real LAN, which others share, every use has addresses of its own.
    """
    owner = f"{instance.run_id}/{instance.name}" if shared else "lab"
    fixed = {card.address for _, _, card in cards if card.address}
    free = free_addresses(subnet, fixed) if subnet else None
    named: set[str] = set()
    for guest, index, card in cards:
        yield Member(
            guest=guest,
            index=index,
            mac=card.mac or derived_mac(owner, guest, index),
            address=card.address or (next(free) if free else None),
            hostname=None if guest in named else guest,
            tap=tap_name(instance.run_id, instance.name, guest, index),
        )
        named.add(guest)
