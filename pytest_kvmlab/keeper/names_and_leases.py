"""Addresses and names in a network of a lab, given by dnsmasq (dnsmasq(8)). The door to that program."""

import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from pathlib import Path

from pytest_kvmlab.keeper.lan_request import UPLINK_SUBNET, LanHost, LanNetwork, LanRequest
from pytest_kvmlab.keeper.programs import run_program


@dataclass(frozen=True)
class NameServer:
    """The dnsmasq of one network.

    Attributes:
        network: the network.
        device: where it listens.
        folder: where its files are.
        elsewhere: addresses of the lab's guests that have no name here, by name: a guest with several cards
            asks one server only, and that one should know them all.
    """

    network: LanNetwork
    device: str
    folder: Path
    elsewhere: Mapping[str, str] = field(default_factory=dict)

    def start(self) -> None:
        """Start it; it answers when this returns.

        Raises:
            HostError: it is missing, or refuses.
        """
        run_program(self.command())

    def stop(self) -> None:
        """End it at once; its clients are gone, or about to be."""
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(self._process.read_text()), signal.SIGKILL)

    def addresses(self) -> dict[str, str]:
        """Which MAC address has taken which address."""
        with contextlib.suppress(OSError):
            return as_leases(self._leases.read_text())
        return {}

    def command(self) -> list[str]:
        """The command line; it goes to the background by itself once it answers."""
        subnet = IPv4Interface(self.network.gateway or "").network
        options = [
            "--conf-file=/dev/null",  # not the host's
            "--no-hosts",
            "--no-resolv",
            "--bind-interfaces",
            f"--interface={self.device}",
            "--except-interface=lo",
            "--user=nobody",
            f"--pid-file={self._process}",
            f"--log-facility={self.folder / f'{self.network.name}.log'}",
            "--log-dhcp",
            f"--dhcp-leasefile={self._leases}",
            f"--dhcp-range={subnet.network_address},static,{subnet.netmask},infinite",
            "--dhcp-authoritative",
            "--dhcp-ignore-names",  # a guest does not choose what the others call it
            "--no-ping",
            "--domain-needed",
            "--bogus-priv",
        ]
        hosts = [option for host in self.network.hosts for option in _host(host, self.network.domain)]
        others = [f"--host-record={name},{address}" for name, address in self.elsewhere.items()]
        return ["dnsmasq", *options, *self._domain(), *self._way_out(), *hosts, *others]

    def _domain(self) -> list[str]:
        domain = self.network.domain
        return [f"--domain={domain}", f"--local=/{domain}/"] if domain else []

    def _way_out(self) -> list[str]:
        """Name a router only where there is one: guests then see at once that nothing else can be reached."""
        resolver = UPLINK_SUBNET[3]  # slirp4netns(1): answers as the host's own does
        return [f"--server={resolver}"] if self.network.uplink else ["--dhcp-option=option:router"]

    @property
    def _process(self) -> Path:
        return self.folder / f"{self.network.name}.pid"

    @property
    def _leases(self) -> Path:
        return self.folder / f"{self.network.name}.leases"


def _host(host: LanHost, domain: str | None) -> list[str]:
    if not host.address:
        return []
    reserved = ",".join(filter(None, (host.mac, host.address, host.name)))
    names = [f"{host.name}.{domain}"] * bool(domain) + [str(host.name)]
    record = [f"--host-record={','.join(names)},{host.address}"] if host.name else []
    return [f"--dhcp-host={reserved},infinite", *record]


def names_elsewhere(request: LanRequest, network: LanNetwork) -> dict[str, str]:
    """The guests of a lab that a network does not name itself, with their addresses in the others."""
    here = {host.name for host in network.hosts}
    there = [host for other in request.networks for host in other.hosts if host.name not in here]
    return {host.name: host.address for host in reversed(there) if host.name and host.address}


def as_leases(text: str) -> dict[str, str]:
    """Read dnsmasq's lease file: per line its end, MAC, address, name and client (`lease.c`).

    Returns:
        The addresses by MAC; what is not of that form is passed by.
    """
    fields = (line.split() for line in text.splitlines())
    return {words[1].lower(): words[2] for words in fields if len(words) >= 4 and words[1].count(":") == 5}
