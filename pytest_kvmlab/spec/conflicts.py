"""What cannot be true at once in a lab: found before anything starts, and told all together."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from itertools import combinations

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.application import LabApp
from pytest_kvmlab.spec.guest import GuestKeys, NetworkKeys
from pytest_kvmlab.spec.names import nearest
from pytest_kvmlab.spec.network import LabNetwork
from pytest_kvmlab.spec.validation import all_at_once

DEFAULT_PREFIX = 24
"""The size of a network that was given no subnet."""

# What is made for a lab at most. The keeper, which makes it and trusts nobody, has these limits of its own.
MOST_NETWORKS, MOST_CARDS = 8, 64
UPLINKS = IPv4Network("198.18.0.0/24")
"""Between networks and what leads out of them, so that none of them can have it."""

# What QEMU gives a guest behind a user-mode card (QEMU docs/system/devices/net.rst).
_USER_MODE = IPv4Network("10.0.2.0/24")


@dataclass(frozen=True)
class Conflict:
    """A mistake in one line, with the key's dotted path; and what to do, where that is not obvious."""

    said: str
    hint: str = ""


@dataclass(frozen=True)
class _Card:
    """A network card, and the network of the lab that it is in."""

    guest: str
    place: str
    keys: NetworkKeys
    network: LabNetwork | None

    @property
    def in_user_mode(self) -> bool:
        return self.keys.name is None or (self.network is not None and self.network.mode == "user")


def find_conflicts(
    guests: Mapping[str, GuestKeys], networks: Mapping[str, LabNetwork], apps: Mapping[str, LabApp]
) -> list[Conflict]:
    """Look for what cannot be true at once.

    Args:
        guests: the guests of the lab, by name; what marks and images say may be merged in.
        networks: its networks.
        apps: its applications.

    Returns:
        Every conflict: names that nothing has; a MAC address, an address, a port of a guest, a bridge or a
        dongle that is claimed twice; addresses that their network does not have or gives to others; subnets
        that overlap or are too small; more than can be made for one lab.
    """
    cards = _cards(guests, networks)
    return [
        *_unknown_networks(cards, networks),
        *_unknown_guests(apps, guests),
        *_claimed_twice("MAC address", ((card.place, card.keys.mac) for card in cards)),
        *_claimed_twice("address", ((card.place, card.keys.address) for card in cards)),
        *_claimed_twice("guest and port", _ports(apps)),
        *_claimed_twice("bridge, which is made for one of them", _bridges(networks)),
        *_claimed_twice("dongle", _dongles(guests), _SAY_WHICH_DONGLE),
        *_overlapping_subnets(networks),
        *_misplaced_addresses(cards),
        *_full_subnets(cards, networks),
        *_too_many(cards, networks),
        *_beside_user_mode(cards),
    ]


def refuse_conflicts(
    guests: Mapping[str, GuestKeys],
    networks: Mapping[str, LabNetwork],
    apps: Mapping[str, LabApp],
    *,
    source: str,
) -> None:
    """Refuse what cannot be true at once.

    Args:
        guests: as for `find_conflicts`.
        networks: likewise.
        apps: likewise.
        source: where it was written, as the reader knows it.

    Raises:
        ConfigError: there are conflicts; it tells all of them.
    """
    if found := find_conflicts(guests, networks, apps):
        raise told(found, source=source)


def told(conflicts: Iterable[Conflict], *, source: str) -> ConfigError:
    """Tell conflicts.

    Args:
        conflicts: at least one.
        source: where they were written, as the reader knows it.

    Returns:
        The error, to be raised.
    """
    listed = list(conflicts)
    return all_at_once(source, [each.said for each in listed], [each.hint for each in listed])


def _cards(guests: Mapping[str, GuestKeys], networks: Mapping[str, LabNetwork]) -> list[_Card]:
    return [
        _Card(guest, f"guest.{guest}.networks[{index}]", card, networks.get(card.name or ""))
        for guest, keys in guests.items()
        for index, card in enumerate(keys.networks or ())
    ]


def _unknown_networks(cards: Iterable[_Card], networks: Mapping[str, LabNetwork]) -> Iterator[Conflict]:
    for card in cards:
        if card.keys.name is not None and card.network is None:
            known = f"its networks: {', '.join(networks)}" if networks else "describe it: [network.NAME]"
            name = card.keys.name
            yield Conflict(
                f"{card.place}.name: no network is called '{name}'{nearest(name, networks)}", known
            )


def _unknown_guests(apps: Mapping[str, LabApp], guests: Mapping[str, GuestKeys]) -> Iterator[Conflict]:
    for name, app in apps.items():
        if app.guest not in guests:
            yield Conflict(
                f"app.{name}.guest: no guest is called '{app.guest}'{nearest(app.guest, guests)}",
                f"its guests: {', '.join(guests)}",
            )


def _claimed_twice(
    what: str, claims: Iterable[tuple[str, Hashable | None]], hint: str = ""
) -> Iterator[Conflict]:
    places: dict[Hashable, list[str]] = {}
    for place, value in claims:
        if value is not None:
            places.setdefault(value, []).append(place)
    for value, claimants in places.items():
        if len(claimants) > 1:
            yield Conflict(f"{' and '.join(claimants)} have one {what}, {value}", hint)


def _ports(apps: Mapping[str, LabApp]) -> Iterator[tuple[str, str]]:
    for name, app in apps.items():
        yield f"app.{name}", f"{app.guest}:{app.port}"


def _bridges(networks: Mapping[str, LabNetwork]) -> Iterator[tuple[str, str | None]]:
    """Several networks may be on one real LAN, but nobody is on a bridge that is made for another."""
    made = {network.bridge for network in networks.values() if network.simulated}
    for name, network in networks.items():
        yield f"network.{name}", network.bridge if network.bridge in made else None


_SAY_WHICH_DONGLE = (
    "if several are plugged in, say which is whose, by port or serial number: `kvmlab usb list` shows them"
)


def _dongles(guests: Mapping[str, GuestKeys]) -> Iterator[tuple[str, str | None]]:
    """A virtual dongle is its guest's alone, whatever it looks like."""
    for name, keys in guests.items():
        for index, dongle in enumerate(keys.usb or ()):
            yield f"guest.{name}.usb[{index}]", None if dongle.virtual else dongle.place


def _overlapping_subnets(networks: Mapping[str, LabNetwork]) -> Iterator[Conflict]:
    written = [(name, network.subnet) for name, network in networks.items() if network.subnet]
    for (one, first), (other, second) in combinations(written, 2):
        if first.overlaps(second):
            yield Conflict(f"network.{one}.subnet and network.{other}.subnet overlap: {first} and {second}")
    for name, subnet in written:
        if subnet.overlaps(UPLINKS):
            yield Conflict(f"network.{name}.subnet: {subnet} overlaps {UPLINKS}, which uplinks use")


def _misplaced_addresses(cards: Iterable[_Card]) -> Iterator[Conflict]:
    for card in cards:
        if card.network and card.keys.address and (conflict := _misplaced(card, card.network)):
            yield conflict


def _misplaced(card: _Card, network: LabNetwork) -> Conflict | None:
    address, key, name = card.keys.address, f"{card.place}.address", card.keys.name
    if network.mode == "user":
        return Conflict(f"{key}: network '{name}' has mode 'user', in which every guest has the same address")
    if not network.is_ours or address is None:
        return None
    if network.subnet is None:
        near = IPv4Network((address, DEFAULT_PREFIX), strict=False)
        return Conflict(
            f"{key}: network '{name}' has no subnet that {address} could be in",
            f'give it one: [network.{name}] subnet = "{near}"',
        )
    if address not in network.subnet:
        return Conflict(f"{key}: {address} is outside the subnet of network '{name}', {network.subnet}")
    if role := _ROLES.get(_place_in(network.subnet, int(address))):
        return Conflict(f"{key}: {address} is the {role} address of network '{name}', {network.subnet}")
    return None


_ROLES = {0: "network", 1: "gateway's", -1: "broadcast"}


def _place_in(subnet: IPv4Network, address: int) -> int:
    """Count from the start of a subnet; its last address is -1."""
    return -1 if address == int(subnet.broadcast_address) else address - int(subnet.network_address)


def _full_subnets(cards: Iterable[_Card], networks: Mapping[str, LabNetwork]) -> Iterator[Conflict]:
    asked = [card.keys.name for card in cards]
    for name, network in networks.items():
        addresses = network.subnet.num_addresses if network.subnet else 2 ** (32 - DEFAULT_PREFIX)
        # The network's own, the gateway's and the broadcast address are no card's.
        if network.is_ours and asked.count(name) > addresses - 3:
            yield Conflict(
                f"network.{name}.subnet: has {addresses - 3} addresses for {asked.count(name)} network cards",
                "give it a larger one, such as 10.77.0.0/16",
            )


def _too_many(cards: Iterable[_Card], networks: Mapping[str, LabNetwork]) -> Iterator[Conflict]:
    made = [name for name, network in networks.items() if network.mode != "user"]
    if len(made) > MOST_NETWORKS:
        yield Conflict(
            f"network: {len(made)} are made for the lab, and {MOST_NETWORKS} is the most: {', '.join(made)}",
            "make two labs of it",
        )
    asked = [card.keys.name for card in cards]
    for name in made:
        if asked.count(name) > MOST_CARDS:
            yield Conflict(f"network.{name}: {asked.count(name)} network cards, and {MOST_CARDS} is the most")


def _beside_user_mode(cards: Sequence[_Card]) -> Iterator[Conflict]:
    """A guest cannot tell two networks with the same addresses apart."""
    guests = {card.guest for card in cards if card.in_user_mode}
    for card in cards:
        subnet = card.network.subnet if card.network else None
        if card.guest in guests and subnet and subnet.overlaps(_USER_MODE):
            yield Conflict(
                f"{card.place}: network '{card.keys.name}' overlaps {_USER_MODE}, "
                f"in which the guest has a user-mode card",
                "give that network another subnet",
            )
