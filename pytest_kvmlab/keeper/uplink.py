"""A way out of a lan, by user-mode networking on the host: slirp4netns(1), the door to that program.

It is started outside the private host, by the owner of the lan, and needs no rule or device there. It ends
when the lan does: the other end of a pipe that it watches is open there, and nowhere else.
"""

import contextlib
import os
import select
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pytest_kvmlab.errors import HostError
from pytest_kvmlab.keeper.lan_request import UPLINK_SUBNET, LanRequest
from pytest_kvmlab.keeper.links import inner_name
from pytest_kvmlab.keeper.programs import find_program, run_program
from pytest_kvmlab.keeper.run_folder import tail_of

_DEVICE = "tap0"
_FORWARDS = Path("/proc/sys/net/ipv4/ip_forward")  # of the network namespace of whoever opens it
_READY_SECONDS = 30.0


def prepare_way_out(request: LanRequest) -> None:
    """Let packets of networks with an uplink pass through the namespace of this process, and no others.

    A new namespace forwards if the host does, which would join the networks of a lab.

    Raises:
        HostError: `nft` is missing, or refuses.
        OSError: the kernel's setting cannot be written.
    """
    led_out = [inner_name(index) for index, network in enumerate(request.networks) if network.uplink]
    if led_out:
        run_program(["nft", "--file", "-"], text=rules(led_out), check="uplink")
    _FORWARDS.write_text("1" if led_out else "0")


def rules(devices: Sequence[str]) -> str:
    """Write what nft(8) is to be told: what may pass, and that it goes out under our own address."""
    inside = ", ".join(f'"{device}"' for device in devices)
    return f"""
table ip way_out {{
    chain forward {{
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname {{ {inside} }} oifname "{_DEVICE}" accept
    }}
    chain leave {{
        type nat hook postrouting priority 100;
        oifname "{_DEVICE}" masquerade
    }}
}}
"""


def lead_out(descriptors: Sequence[int], log: Path) -> "subprocess.Popen[bytes]":
    """Start the way out, and wait until it is there.

    Args:
        descriptors: of the network namespace of the lan, of the pipe that ends with it, and, if this is
            another one, of its user namespace; closed here.
        log: where the program writes to.

    Raises:
        HostError: it is missing, or cannot do it, with what it said.
    """
    ready, says_ready = os.pipe()
    with contextlib.ExitStack() as opened:
        for descriptor in (ready, *descriptors):
            opened.callback(os.close, descriptor)
        try:
            process = _start(descriptors, says_ready, log)
        finally:
            os.close(says_ready)
        if select.select([ready], [], [], _READY_SECONDS)[0] and os.read(ready, 1):
            return process
        process.kill()
        process.wait()
    raise HostError(f"there is no way out: {tail_of(log)}", "run: kvmlab doctor", check="uplink")


def _start(descriptors: Sequence[int], says_ready: int, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen(
            command(descriptors, says_ready),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[*descriptors, says_ready],
            start_new_session=True,  # Ctrl-C is for the tests, and a kept run outlives its owner
            cwd="/",
        )


def command(descriptors: Sequence[int], says_ready: int) -> list[str]:
    """The command line. What guests send is only read by a process that may do next to nothing.

    Its sandbox needs a user 0, whom the user namespace of somebody else than root does not have.
    """
    network, end, *user = descriptors
    return [
        find_program("slirp4netns", check="uplink"),
        "--configure",
        f"--cidr={UPLINK_SUBNET}",
        "--disable-host-loopback",
        *([] if user else ["--enable-sandbox"]),
        "--enable-seccomp",
        f"--exit-fd={end}",
        f"--ready-fd={says_ready}",
        "--netns-type=path",
        *(f"--userns-path=/proc/self/fd/{descriptor}" for descriptor in user),
        f"/proc/self/fd/{network}",
        _DEVICE,
    ]
