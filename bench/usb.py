"""Virtual USB devices beside one that QEMU emulates itself: requests, and being plugged in and out.

Both are the same converter under the same driver of the guest's kernel, `ftdi_sio`. A request is one of the
vendor's own, which the driver sends when its latency timer is written. `answer` is a request without a guest,
from a port of this program's and back: what of it is ours.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import libvirt_qemu

from bench.boot import open_bench
from pytest_kvmlab import Guest, VirtualUsbDevice
from pytest_kvmlab.spec.options import resolve_options
from tests.guest.usb_devices import Converter
from tests.unit.usb_port import listening

ID = "0403:6001"
LATENCY = "/sys/bus/usb-serial/devices/ttyUSB0/latency_timer"
BATCHES, REQUESTS = 11, 100
ANSWERS = 2000
MOST_ANSWER_MS = 1.0
MOST_REQUEST_MS = 10.0


def answer_ms() -> float:
    """Median of a request from a socket to the device and back, in milliseconds."""
    times = []
    with (
        tempfile.TemporaryDirectory(prefix="kvl-") as folder,
        listening(Path(folder, "port")) as port,
        port.configured(Converter(ID)),
    ):
        for _ in range(ANSWERS):
            started = time.perf_counter()
            port.control(0x40, 0x09, 7)
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


class BuiltIn:
    """QEMU's own converter, plugged in and out by its monitor."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._lines = 0  # QEMU does not let go of the far end of one that was pulled out

    def plug(self) -> None:
        self._lines += 1
        self._tell(f"chardev-add null,id=line{self._lines}")
        self._tell(f"device_add usb-serial,id=builtin,chardev=line{self._lines},always-plugged=on")
        self._guest.wait_until_succeeds(f"test -e {LATENCY}")

    def unplug(self) -> None:
        self._tell("device_del builtin")
        self._guest.wait_until_succeeds(f"! test -e {LATENCY}")

    def _tell(self, command: str) -> None:
        answer = libvirt_qemu.qemuMonitorCommand(
            self._guest.domain, command, libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP
        )
        if answer.strip():
            raise RuntimeError(answer)


class Virtual:
    """Ours, plugged in and out by `guest.usb`."""

    def __init__(self, guest: Guest, device: VirtualUsbDevice) -> None:
        self._guest = guest
        self._device = device

    def plug(self) -> None:
        self._guest.usb.attach(self._device)
        self._guest.wait_until_succeeds(f"test -e {LATENCY}")

    def unplug(self) -> None:
        self._guest.usb.detach(self._device)
        self._guest.wait_until_succeeds(f"! test -e {LATENCY}")


def requests_ms(guest: Guest) -> float:
    """Median of a vendor request of the guest's driver, in milliseconds, without the shell around it."""

    def batch(file: str) -> float:
        loop = f"i=0; while [ $i -lt {REQUESTS} ]; do echo 7 >{file}; i=$((i+1)); done"
        return float(guest.succeed(f"{{ time -p sh -c '{loop}'; }} 2>&1").split()[1]) * 1000 / REQUESTS

    return statistics.median(batch(LATENCY) for _ in range(BATCHES)) - statistics.median(
        batch("/dev/null") for _ in range(BATCHES)
    )


def seconds(act: Callable[[], None]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def measure(guest: Guest, runs: int, cycles: int) -> dict[str, float]:
    """The two converters in turns, and then many cycles of ours."""
    built_in, virtual = BuiltIn(guest), Virtual(guest, Converter(ID, serial="bench"))
    figures: dict[str, float] = {"answer_ms": answer_ms()}
    for name, way in (("built_in", built_in), ("virtual", virtual)):
        pairs = [(seconds(way.plug), seconds(way.unplug)) for _ in range(runs + 1)][1:]
        plug, unplug = (statistics.median(column) for column in zip(*pairs, strict=True))
        way.plug()
        figures |= {
            f"attach_{name}_s": plug,
            f"detach_{name}_s": unplug,
            f"request_{name}_ms": requests_ms(guest),
        }
        way.unplug()
    ratio = figures["request_virtual_ms"] / figures["request_built_in_ms"]
    return figures | {"request_ratio": ratio, "cycles": cycles, "lost": lost(guest, virtual, cycles)}


def lost(guest: Guest, virtual: Virtual, cycles: int) -> int:
    """How many times of so many the guest did not have exactly one, or still had it."""

    def seen() -> int:
        return guest.succeed("cat /sys/bus/usb/devices/*/idVendor").split().count("0403")

    wrong = 0
    for _ in range(cycles):
        virtual.plug()
        there = seen()
        virtual.unplug()
        wrong += (there, seen()) != (1, 0)
    return wrong


def main() -> int:
    """Measure, print, and fail if a device was lost or requests take too long."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    options = resolve_options({"lab": True}, os.environ, {})
    with open_bench(options) as bench, bench.guest("serial") as guest:
        figures = measure(guest, arguments.runs, arguments.cycles)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2))
    for name, value in figures.items():
        print(f"{name:22} {value:8.3f}")
    slow = figures["answer_ms"] > MOST_ANSWER_MS or figures["request_virtual_ms"] > MOST_REQUEST_MS
    return 1 if slow or figures["lost"] else 0


if __name__ == "__main__":
    sys.exit(main())
