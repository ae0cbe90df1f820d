"""Which addresses the network cards of a guest have: asked where it has a shell, else seen on their wires."""

import re
from collections.abc import Collection
from ipaddress import AddressValueError, IPv4Address

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import GuestError
from pytest_kvmlab.lab.conditions import Conditions
from pytest_kvmlab.lab.wiring import Line

# As ip-address(8) and busybox print it: the card's MAC address, and below it its addresses.
_ASK = "ip address"
_MAC = re.compile(r"\s+link/ether ([0-9a-f:]{17})\b")
_ADDRESS = re.compile(r"\s+inet ([0-9.]{7,15})\b")


def prove_addresses(guest: Conditions, deadline: Deadline) -> None:
    """See that no network card of a guest has another address than it was to have.

    A card without an address is left alone, as a guest may set it up later or never. So is one that the lab
    file gives no address, in a guest that lives outside the network's subnet: that has made its own plans.

    Args:
        guest: the guest, ready.
        deadline: for its answer.

    Raises:
        GuestError: a card has another one.
    """
    lines = [line for line in guest.machine.lines if line and line.member.address]
    if not lines:
        return
    own = _asked(guest, deadline)
    for line in lines:
        found = own.get(line.member.mac) or _seen(line)
        written = guest.spec.networks[line.member.index].address is not None
        if _is_another(line, found, written=written):
            raise _another(guest, line, found)


def _is_another(line: Line, found: Collection[IPv4Address], *, written: bool) -> bool:
    if not found or line.member.address in found:
        return False
    subnet = line.plan.subnet
    return written or subnet is None or any(address in subnet for address in found)


def _another(guest: Conditions, line: Line, found: Collection[IPv4Address]) -> GuestError:
    network, mac, planned = line.plan.network, line.member.mac, line.member.address
    server = f"the DHCP server of {line.plan.port_on}" if line.plan.port_on else "DHCP"
    return GuestError(
        f"{guest.name}: card {line.member.index} ({mac}) in network '{network}' has the address "
        f"{', '.join(map(str, found))}, and was to have {planned}",
        f"{server} is to give {mac} that address, and the guest to take it; or write the one that it has: "
        f'{{ name = "{network}", address = "{next(iter(found))}" }}',
        phase="network",
    )


def _seen(line: Line) -> list[IPv4Address]:
    return [IPv4Address(line.seen)] if line.seen else []


def _asked(guest: Conditions, deadline: Deadline) -> dict[str, list[IPv4Address]]:
    """What a guest says of its cards, by MAC address; nothing if it cannot be asked."""
    if guest.spec.login.channel == "none":
        return {}
    return as_addresses(guest.ask_again(_ASK, deadline).stdout)


def as_addresses(told: str) -> dict[str, list[IPv4Address]]:
    """Read the addresses of network cards.

    Args:
        told: what `ip address` prints, or a guest in its place.

    Returns:
        The IPv4 addresses by MAC address; those of devices that share a card's count as the card's.
    """
    found: dict[str, list[IPv4Address]] = {}
    mac = ""
    for line in told.splitlines():
        if card := _MAC.match(line):
            mac = card[1]
        elif not line.startswith(" "):  # the next device, which may have no MAC address
            mac = ""
        elif mac and (address := _address(line)):
            found.setdefault(mac, []).append(address)
    return found


def _address(line: str) -> IPv4Address | None:
    if written := _ADDRESS.match(line):
        try:
            return IPv4Address(written[1])
        except AddressValueError:
            pass
    return None
