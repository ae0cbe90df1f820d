"""The owner's end of a lan: open the networks of a lab, reach what is in them, close them."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.client import dial_lan
from pytest_kvmlab.keeper.faults import Faults, faults_as_document
from pytest_kvmlab.keeper.lan_request import LanNetwork, LanRequest, as_document
from pytest_kvmlab.keeper.protocol import OpenLan, ask_for, hear, refusal, refused, say
from pytest_kvmlab.keeper.real_bridge import join, plug_in, refuse_taken_macs
from pytest_kvmlab.keeper.run_folder import RunFolder
from pytest_kvmlab.keeper.uplink import lead_out

_OPEN_SECONDS = 60.0
_CLOSE_SECONDS = 30.0
_ANSWER_SECONDS = 5.0


def open_lan(folder: RunFolder, request: LanRequest) -> "Lan":
    """Make the networks of one use of a lab, on a run's private host.

    Args:
        folder: the run's folder; its private host answers already.
        request: the networks.

    Returns:
        The lan; its networks end with it, and with this process.

    Raises:
        HostError: the keeper is gone, a program is missing, or the kernel refuses.
    """
    with contextlib.ExitStack() as undo:
        line = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            answer = _asked(line, folder, request)
        except OSError as error:
            answer = refusal(error)
        if "error" in answer:
            raise refused("the networks of the lab cannot be made", answer, looked_at=[folder.host_log])
        lan = Lan(folder, request, line)
        undo.callback(lan.close)
        lan.plug_in()
        lan.lead_out()
        undo.pop_all()
    return lan


def _asked(line: socket.socket, folder: RunFolder, request: LanRequest) -> dict[str, Any]:
    """Ask for networks, and wait for them."""
    line.settimeout(_OPEN_SECONDS)
    line.connect(str(folder.keeper_socket))
    say(line, asdict(OpenLan(request.lan)))
    hear(line)  # its process is there
    say(line, as_document(request))
    answer, _ = hear(line)
    return answer


class Lan:
    """The networks of one use of a lab, while they are there.

    Attributes:
        request: what they are.
    """

    def __init__(self, folder: RunFolder, request: LanRequest, line: socket.socket) -> None:
        self.request = request
        self._run = folder
        self._line = line
        self._outside: list[subprocess.Popen[bytes]] = []

    def lead_out(self) -> None:
        """Start the way out, if one of the networks has an uplink.

        Raises:
            HostError: slirp4netns is missing, or cannot do it.
        """
        if any(network.uplink for network in self.request.networks):
            _, passes = self._ask("way out")
            self._outside.append(lead_out(passes, self._folder / "uplink.log"))

    def plug_in(self) -> None:
        """Plug networks into the bridges of this host that they are parts of.

        Raises:
            HostError: there is no such bridge, this user may not, or on that LAN somebody has one of our
                addresses already.
        """
        plugged = {network: network.port_on for network in self.request.networks if network.port_on}
        for network, bridge in plugged.items():
            refuse_taken_macs(network, bridge)
        if plugged:
            if os.geteuid() == 0:
                self._plug_in(plugged)
            else:
                self._join(plugged)
            self._refuse_taken_addresses()

    def _plug_in(self, plugged: Mapping[LanNetwork, str]) -> None:
        _, (run,) = self._ask("run")
        with closing(os.fdopen(run)):
            for network, bridge in plugged.items():
                plug_in(network, bridge, run)

    def _join(self, plugged: Mapping[LanNetwork, str]) -> None:
        for network, bridge in plugged.items():
            _, passes = self._ask("port", of=network.name)
            self._outside.append(join(bridge, passes))

    def _refuse_taken_addresses(self) -> None:
        taken, _ = self._ask("taken")
        if taken:
            who = ", ".join(f"{address} by {mac}" for address, mac in taken.items())
            raise HostError(f"these addresses are taken on the real LAN: {who}", "choose others")
        seen = self.addresses()
        if seen:
            raise HostError(
                f"these MAC addresses are taken on the real LAN: {', '.join(seen)}", "choose others"
            )

    @property
    def bridges(self) -> dict[str, str]:
        """The bridge of each network, in the private host, by the network's name in the lab."""
        return {network.name: network.bridge for network in self.request.networks}

    def dial(self, address: str, port: int, timeout: float) -> socket.socket:
        """Open a TCP connection to a guest.

        Args:
            address: an IPv4 address in one of the networks. One on a real LAN is reached as this host
                reaches it.
            port: a TCP port.
            timeout: seconds for the connection to be accepted.

        Returns:
            The connected socket; it keeps working here (network_namespaces(7)).

        Raises:
            OSError: nobody accepts there, or not in time.
            HostError: the networks are gone.
        """
        if not self.leads_to(address):
            return socket.create_connection((address, port), timeout=timeout)
        return dial_lan(self._run, self.request.lan, address, port, timeout=timeout)

    def addresses(self) -> dict[str, str]:
        """Tell which network card has taken which address.

        Returns:
            Addresses by MAC, in small letters.

        Raises:
            HostError: the networks are gone.
        """
        answer, _ = self._ask("addresses")
        return {mac: str(address) for mac, address in answer.items()}

    def break_wires(self, faults: Faults) -> None:
        """Make these all the faults that are on the wires of these networks; none heals them.

        Args:
            faults: by the TAPs that were asked for.

        Raises:
            HostError: the networks are gone, there is no such TAP, or the kernel cannot do this.
        """
        asked = {"faults": faults_as_document(faults)}
        try:
            answer, _ = ask_for(self._socket, asked, timeout=_OPEN_SECONDS)
        except OSError as error:
            raise self._gone(error) from error
        if "error" in answer:
            raise refused("the wires cannot be broken like that", answer)

    def keep(self) -> None:
        """Leave the networks to the run. They do not end with this process any more.

        Raises:
            HostError: they are gone.
        """
        if self._line.fileno() < 0:
            return  # for another guest in them
        try:
            self._line.sendall(b"keep\n")
        except OSError as error:
            raise self._gone(error) from error
        self._line.close()
        for process in self._outside:
            # It is meant to run on; without this Popen would warn of it when it is forgotten.
            process.returncode = 0

    def close(self) -> None:
        """Take the networks down, unless they are kept; those that are gone are as good.

        Raises:
            HostError: they do not come to an end.
        """
        if self._line.fileno() < 0:
            return
        with self._line as line:
            line.settimeout(_CLOSE_SECONDS)
            try:
                line.sendall(b"end\n")
                while line.recv(100):
                    pass
            except TimeoutError as error:
                raise HostError(f"the networks at {self._folder} do not end", "run: kvmlab reap") from error
            except OSError:
                pass  # killed, perhaps; its networks go with the run
        for process in self._outside:
            _see_the_end_of(process)

    def leads_to(self, address: str) -> bool:
        """Whether an address is in a network that we have one in, too; else it is on a real LAN."""
        ours = [
            IPv4Interface(network.gateway).network for network in self.request.networks if network.gateway
        ]
        return any(IPv4Address(address) in network for network in ours)

    def _ask(self, what: str, **more: str) -> tuple[dict[str, Any], list[int]]:
        try:
            return ask_for(self._socket, {"tell": what, **more}, timeout=_ANSWER_SECONDS)
        except OSError as error:
            raise self._gone(error) from error

    @property
    def _folder(self) -> Path:
        return self._run.lan(self.request.lan)

    @property
    def _socket(self) -> Path:
        return self._run.lan_socket(self.request.lan)

    def _gone(self, error: OSError) -> HostError:
        return HostError(f"the networks of the lab are gone: {error}", looked_at=[self._socket])


def _see_the_end_of(process: "subprocess.Popen[bytes]") -> None:
    """Wait for what ends by itself when the networks do."""
    try:
        process.wait(_CLOSE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
