"""The networks of one use of a lab where no namespaces can be made: in this process, as long as it lives."""

import random
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Interface

from pytest_kvmlab.drivers.frame_switch import Switch
from pytest_kvmlab.drivers.lan_station import Known, Station
from pytest_kvmlab.drivers.way_in import WayIn, gateway_mac
from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.faults import Faults
from pytest_kvmlab.keeper.lan_request import LanNetwork, LanRequest
from pytest_kvmlab.keeper.names_and_leases import names_elsewhere
from pytest_kvmlab.plan.names import domain_name

_GATEWAY = "gateway"  # a port of the switch beside those of the cards, which are named like TAPs


@dataclass(frozen=True)
class _Segment:
    """One network: who gives addresses and names away, who carries frames, and how a test gets in."""

    subnet: IPv4Interface
    station: Station
    switch: Switch
    way_in: WayIn


class UserLan:
    """Networks between the QEMUs of a lab: with addresses, names and a way in for tests, and no way out.

    Args:
        run: the run's id.
        request: the networks; each has a gateway and no uplink.

    Attributes:
        request: what they are.
        ports: where each card connects to, on the loopback address: by the name that its TAP would have.

    Raises:
        HostError: a gateway does not start.
    """

    def __init__(self, run: str, request: LanRequest) -> None:
        self.request = request
        self.ports: dict[str, int] = {}
        self._segments: list[_Segment] = []
        with ExitStack() as undo:
            for index, network in enumerate(request.networks):
                self._open(f"{request.lan}-{index}", run, network, undo)
            self._undo = undo.pop_all()

    def _open(self, name: str, run: str, network: LanNetwork, undo: ExitStack) -> None:
        gateway = IPv4Interface(network.gateway or "")
        taps = [host.tap for host in network.hosts if host.tap]
        station = _station(self.request, network, gateway)
        switch = Switch([_GATEWAY, *taps], station.answer)
        undo.callback(switch.close)
        way_in = WayIn(f"guest={domain_name(run, f'lan-{name}')}", gateway, switch.numbers[_GATEWAY])
        undo.callback(way_in.close)
        self._segments.append(_Segment(gateway, station, switch, way_in))
        self.ports |= {tap: switch.numbers[tap] for tap in taps}

    def dial(self, address: str, port: int, timeout: float) -> socket.socket:
        """Open a TCP connection to a guest: it is accepted at once, and ends if the guest refuses it.

        Raises:
            OSError: it is not accepted in time.
            HostError: there is no such network, or its gateway is gone.
        """
        for segment in self._segments:
            if IPv4Address(address) in segment.subnet.network:
                way = segment.way_in.forwarded(address, port)
                return socket.create_connection(("127.0.0.1", way), timeout=timeout)
        raise HostError(f"no network of the lab has {address}")

    def addresses(self) -> dict[str, str]:
        """The addresses that cards have taken, by MAC."""
        return {mac: address for each in self._segments for mac, address in each.station.taken.items()}

    def break_wires(self, faults: Faults) -> None:
        """Make these all the faults that are on the wires.

        Raises:
            HostError: a line is to be slow: only a kernel can do that.
        """
        if any(line.rate is not None or line.delay for line in faults.impaired.values()):
            raise HostError(
                "a line between guests of the embedded driver can lose packets, but not be slow or late",
                "use --kvm-host=private",
                check="namespaces",
            )
        for segment in self._segments:
            segment.switch.loses = partial(_is_lost, faults, random.random)

    def close(self) -> None:
        """End them."""
        self._undo.close()


def _is_lost(faults: Faults, chance: Callable[[], float], source: str, target: str) -> bool:
    if {(source, target), (target, source)} & set(faults.parted):
        return True
    return any(chance() < faults.impaired[end].loss for end in (source, target) if end in faults.impaired)


def _station(request: LanRequest, network: LanNetwork, gateway: IPv4Interface) -> Station:
    return Station(
        gateway=gateway,
        mac=gateway_mac(gateway.ip),
        cards={
            host.mac: Known(IPv4Address(host.address), host.name) for host in network.hosts if host.address
        },
        names=_names(request, network),
        domain=network.domain,
    )


def _names(request: LanRequest, network: LanNetwork) -> Mapping[str, IPv4Address]:
    here = {host.name: host.address for host in network.hosts if host.name and host.address}
    return {name: IPv4Address(text) for name, text in (names_elsewhere(request, network) | here).items()}
