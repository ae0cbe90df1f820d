"""A port of a lan on a bridge that the host has, for as long as the lan is there: ip-link(8), bridge(8).

The owner of the lan makes it, from outside the private host, with the rights that this takes. Root's port is
one end of a pair whose other end is in the run's network namespace from its first moment, so that the kernel
removes both when the run ends, however that happens (veth(4)). Others have it made by QEMU's helper, and a
process of theirs carries what passes.
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import Any

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.bridge_helper import find_obstacle, open_port
from pytest_kvmlab.keeper.lan_request import LanNetwork, gateway_port
from pytest_kvmlab.keeper.programs import find_program, run_program

_FORWARDING = "forwarding"
# A bridge that speaks the spanning tree protocol listens for up to 30 seconds, and learns as long.
_FORWARDING_SECONDS = 65.0


def subnets_of(bridge: str) -> list[IPv4Network]:
    """Tell which subnets this host reaches by way of a bridge.

    Args:
        bridge: its name; by a bridge that there is not, nothing is reached.

    Raises:
        HostError: `ip` is missing.
    """
    routes = _listed(["ip", "-4", "-json", "route", "show"])
    found = [route["dst"] for route in routes if route.get("dev") == bridge and route["dst"] != "default"]
    return [IPv4Network(subnet) for subnet in found]


def require_bridge(network: str, bridge: str) -> None:
    """Make sure that the host has a bridge, and that this user may plug something in.

    Args:
        network: the network of a lab that is to be a part of its LAN.
        bridge: the bridge's name.

    Raises:
        HostError: there is no such bridge, or this user may not.
    """
    links = _listed(["ip", "-json", "-details", "link", "show"])
    kinds = {link["ifname"]: link.get("linkinfo", {}).get("info_kind") for link in links}
    instead = f"or let a bridge stand for it: [network.{network}] simulated = true"
    if kinds.get(bridge) != "bridge":
        found = f"{bridge} is no bridge" if bridge in kinds else f"this host has no bridge {bridge}"
        known = ", ".join(name for name in kinds if kinds[name] == "bridge") or "none"
        raise HostError(f"network '{network}': {found}", f"name one of: {known}; {instead}")
    if os.geteuid() != 0 and (obstacle := find_obstacle(bridge)):
        raise HostError(
            f"network '{network}': this user cannot be plugged into {bridge}: {obstacle.seen}",
            f"{obstacle.remedy}; {instead}",
            check="bridge",
        )


def refuse_taken_macs(network: LanNetwork, bridge: str) -> None:
    """Make sure that the host's bridge does not know somebody else of the same MAC address.

    Raises:
        HostError: it does, or as for `require_bridge`.
    """
    require_bridge(network.name, bridge)
    known = {entry["mac"]: entry for entry in _listed(["bridge", "-json", "fdb", "show", "br", bridge])}
    for mac in (host.mac for host in network.hosts):
        if mac in known:
            raise HostError(
                f"network '{network.name}': {bridge} knows the MAC address {mac} already, "
                f"from {known[mac].get('ifname', 'one of its ports')}",
                "choose another; if nobody has it any more, a bridge forgets it after five minutes",
            )


def plug_in(network: LanNetwork, bridge: str, run: int) -> None:
    """Make the port, and wait until it lets packets pass.

    Args:
        network: what is to be plugged in.
        bridge: the host's bridge.
        run: a descriptor of the run's network namespace.

    Raises:
        HostError: this user may not, or the port does not begin to forward.
    """
    outer, inner, inside = port_name(network), gateway_port(network.bridge), f"/proc/self/fd/{run}"
    outside = making(outer, inner, inside, bridge, _mtu(bridge))
    run_program(["ip", "-batch", "-"], text="\n".join(outside), descriptors=[run])
    entering = ["nsenter", f"--net={inside}", "--"]
    own_end = ["link", "set", "dev", inner, "addrgenmode", "none", "master", network.bridge, "up"]
    run_program([*entering, find_program("ip"), *own_end], descriptors=[run])
    deadline = Deadline(_FORWARDING_SECONDS)
    _wait_until_it_forwards([*entering, find_program("bridge")], inner, run, deadline)
    _wait_until_it_forwards(["bridge"], outer, run, deadline)


def join(bridge: str, descriptors: Sequence[int]) -> "subprocess.Popen[bytes]":
    """Have a port made by QEMU's helper, join it with one of the lan, and wait until it lets packets pass.

    Args:
        bridge: the host's bridge.
        descriptors: of the port of the lan, and of a pipe that ends with the lan; closed here.

    Returns:
        The process that carries what passes; it ends with the lan.

    Raises:
        HostError: this user may not, or the port does not begin to forward.
    """
    with contextlib.ExitStack() as opened:
        for descriptor in descriptors:
            opened.callback(os.close, descriptor)
        port, name = open_port(bridge)
        opened.callback(os.close, port)
        _wait_until_it_forwards(["bridge"], name, None, Deadline(_FORWARDING_SECONDS))
        numbers = [port, *descriptors]
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "pytest_kvmlab.keeper.pump", *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            pass_fds=numbers,
            start_new_session=True,  # Ctrl-C is for the tests, and a kept run outlives its owner
            cwd="/",
        )


def making(outer: str, inner: str, inside: str, bridge: str, mtu: int) -> list[str]:
    """Write what `ip -batch` is to do on the host.

    A bridge takes the lowest MAC address and the lowest MTU of its ports for its own (Linux, `br_stp_if.c`
    and `br_if.c`). Those of the host's bridge are to stay as they are, so the port has the same MTU, and as
    high an address as there is of its kind, as libvirt's have.
    """
    address = (b"\xfe" + secrets.token_bytes(5)).hex(":")
    peer = f"peer name {inner} mtu {mtu} netns {inside}"
    return [
        f"link add name {outer} address {address} mtu {mtu} type veth {peer}",
        f"link set dev {outer} addrgenmode none master {bridge} up",
    ]


def _mtu(bridge: str) -> int:
    (link,) = _listed(["ip", "-json", "link", "show", "dev", bridge])
    return int(link["mtu"])


def port_name(network: LanNetwork) -> str:
    """Name the port on the host's bridge: as the bridge of the lan, but `kp`."""
    return f"kp{network.bridge[2:]}"


def _wait_until_it_forwards(program: Sequence[str], port: str, run: int | None, deadline: Deadline) -> None:
    """Wait for the kernel, which does not plug a port in before its other end is up."""
    while (state := _state(program, port, run)) != _FORWARDING:
        if deadline.passed:
            raise HostError(f"port {port} does not forward within {deadline.seconds:.0f} s: it is {state}")
        time.sleep(0.05)


def _state(program: Sequence[str], port: str, run: int | None) -> str:
    links = _listed([*program, "-json", "link", "show", "dev", port], *([] if run is None else [run]))
    return str(next((link.get("state") for link in links), "gone"))


def _listed(command: Sequence[str], *descriptors: int) -> list[dict[str, Any]]:
    """What a program lists as JSON; some print nothing if there is nothing."""
    found = json.loads(run_program(command, descriptors=descriptors) or "[]")
    return [entry for entry in found if isinstance(entry, dict)]
