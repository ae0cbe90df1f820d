"""Devices of the networks of a lab: bridges, ports, TAPs. The door to `ip` (ip-link(8), ip-tuntap(8))."""

import array
import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator

from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.lan_request import LanNetwork, LanRequest, gateway_port
from pytest_kvmlab.keeper.programs import find_program, run_program

TUN = "/dev/net/tun"
"""What TAPs are made with."""

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET, sched.h
_MAKE_TAP, _TAP = 0x400454CA, 0x1002  # TUNSETIFF, IFF_TAP | IFF_NO_PI: linux/if_tun.h
_ETHTOOL, _SET_TRANSMIT_CHECKSUMS = 0x8946, 0x17  # SIOCETHTOOL, ETHTOOL_STXCSUM: linux/sockios.h, ethtool.h
_libc = ctypes.CDLL(None, use_errno=True)


def enter_new_network_namespace() -> None:
    """Give this process, which must not have threads yet, a network namespace of its own (unshare(2)).

    Raises:
        OSError: the kernel refuses.
    """
    if _libc.unshare(_NEW_NETWORK) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"no network namespace can be made: {os.strerror(number)}")


def inner_name(index: int) -> str:
    """Name our own end of a network, inside the namespace of the lan."""
    return f"lan{index}"


def refuse_taken_names(request: LanRequest) -> None:
    """Make sure that no device will be taken for one of ours, and removed as such.

    Raises:
        HostError: the namespace of this process has one of such a name.
    """
    there = {name for _, name in socket.if_nameindex()}
    if taken := there.intersection(_devices(request)):
        raise HostError(f"there is a device of this name already: {', '.join(sorted(taken))}")


def refuse_closed_tun() -> None:
    """Make sure that TAPs can be made.

    Raises:
        HostError: this user may not open what they are made with.
    """
    if not os.access(TUN, os.R_OK | os.W_OK):
        hint = f"as root: chmod 666 {TUN}, as udev does"
        raise HostError(f"{TUN} may not be opened by this user", hint, check="networks")


def make_links(request: LanRequest) -> None:
    """Make the bridges and TAPs in the run's namespace, and our own ends in the one of this process.

    Raises:
        HostError: `ip` is missing, or refuses.
    """
    _in_the_run(making(request, os.getpid(), os.getuid()))
    _here(raising(request))
    for index, network in enumerate(request.networks):
        if network.gateway:
            _compute_checksums(inner_name(index))


def remove_links(request: LanRequest) -> None:
    """Remove what `make_links` made in the run's namespace, however much of it there is."""
    lines = [f"link delete dev {name}" for name in _devices(request)]
    command = _entering_the_run(["-force", "-batch", "-"])
    try:
        run_program(command, text="\n".join(lines))
    except HostError:
        return  # some were not there, and all the others were taken away


class Port:
    """A port in the run's namespace whose frames are carried by whoever is given its descriptor.

    To be made before this process leaves that namespace: TAPs are made where `/dev/net/tun` was opened.

    Raises:
        OSError: this user may not open that.
    """

    def __init__(self) -> None:
        self.descriptor = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)

    def plug_into(self, bridge: str) -> None:
        """Plug it into a bridge of the run.

        Raises:
            OSError: there is such a port already.
            HostError: `ip` is missing, or refuses.
        """
        name = gateway_port(bridge)
        fcntl.ioctl(self.descriptor, _MAKE_TAP, struct.pack("16sH22x", name.encode(), _TAP))
        _in_the_run([f"link set dev {name} master {bridge} addrgenmode none up"])


def _devices(request: LanRequest) -> Iterator[str]:
    """What is made in the run's namespace; a port goes before its bridge."""
    for network in request.networks:
        yield from (host.tap for host in network.hosts if host.tap)
        yield from (gateway_port(network.bridge), network.bridge)


def making(request: LanRequest, process: int, user: int) -> list[str]:
    """Write what `ip -batch` is to do in the run's namespace.

    A bridge that speaks the spanning tree protocol says nothing for 30 seconds after something is plugged
    in (IEEE 802.1D). None of the devices has an address, so the subnets of several lans never meet.

    Args:
        request: the networks.
        process: one inside the namespace of the lan.
        user: who may open the TAPs.
    """
    return [line for index, network in enumerate(request.networks)
            for line in _making(network, inner_name(index), process, user)]  # fmt: skip


def _making(network: LanNetwork, inner: str, process: int, user: int) -> Iterator[str]:
    bridge, port = network.bridge, gateway_port(network.bridge)
    yield f"link add name {bridge} type bridge stp_state 0 forward_delay 0"
    yield f"link set dev {bridge} addrgenmode none up"
    if network.gateway:
        yield f"link add name {port} type veth peer name {inner} netns {process}"
        yield f"link set dev {port} master {bridge} addrgenmode none up"
    for host in network.hosts:
        if host.tap:
            yield f"tuntap add dev {host.tap} mode tap user {user} vnet_hdr"
            yield f"link set dev {host.tap} master {bridge} addrgenmode none up"


def raising(request: LanRequest) -> list[str]:
    """Write what `ip -batch` is to do in the namespace of the lan."""
    lines = ["link set dev lo up"]
    for index, network in enumerate(request.networks):
        if network.gateway:
            lines.append(f"address add {network.gateway} dev {inner_name(index)}")
            lines.append(f"link set dev {inner_name(index)} addrgenmode none up")
    return lines


def _in_the_run(lines: Iterable[str]) -> None:
    run_program(_entering_the_run(["-batch", "-"]), text="\n".join(lines))


def _here(lines: Iterable[str]) -> None:
    run_program(["ip", "-batch", "-"], text="\n".join(lines))


def _entering_the_run(options: list[str]) -> list[str]:
    """The command that runs `ip` in the run's network namespace, which is that of PID 1 (nsenter(1))."""
    return ["nsenter", "--target", "1", "--net", "--", find_program("ip"), *options]


def _compute_checksums(device: str) -> None:
    """Have whatever we send carry its checksum; a veth leaves that to hardware there is none of.

    DHCP clients that read packets as they come drop answers without (old ISC ones, and others like them).
    """
    question = array.array("B", struct.pack("II", _SET_TRANSMIT_CHECKSUMS, 0))
    address, _ = question.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _ETHTOOL, struct.pack("16sP", device.encode(), address))
