"""What this machine is, for the record of a run."""

import os
import platform
import re
import time
from contextlib import suppress
from pathlib import Path

from pytest_kvmlab.lab.run import Run
from pytest_kvmlab.spec.run_record import HostRecord

_CPUINFO = Path("/proc/cpuinfo")
_PRESSURE = Path("/proc/pressure/cpu")


class CpuPressure:
    """How much of the time, from now on, some task waits for a processor.

    From the kernel's pressure stall information (Documentation/accounting/psi.rst).
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._before = _waited()

    def share(self) -> float | None:
        """The share since this object was made, 0 to 1; None if the kernel does not tell."""
        now, elapsed = _waited(), time.monotonic() - self._started
        if now is None or self._before is None or elapsed <= 0:
            return None
        return min(1.0, (now - self._before) / elapsed)


def _waited() -> float | None:
    """Seconds since the machine was started in which some task waited."""
    with suppress(OSError):
        if found := re.search(r"some .*total=([0-9]+)", _PRESSURE.read_text()):
            return int(found[1]) / 1e6
    return None


def host_record(run: Run, pressure: CpuPressure) -> HostRecord:
    """Describe where the guests of a run are.

    Args:
        run: this process's part in it.
        pressure: measured since the run began.
    """
    machine, cpu = platform.uname(), _cpuinfo()
    return HostRecord(
        kernel=machine.release,
        architecture=machine.machine,
        processor=cpu.get("model name", ""),
        microcode=cpu.get("microcode", ""),
        processors=len(os.sched_getaffinity(0)),
        kind=run.host.choice.kind,
        libvirt=run.versions.libvirt,
        qemu=run.versions.qemu,
        accelerator=run.verdict.accel,
        accelerator_why=run.verdict.why,
        cpu_pressure=pressure.share(),
    )


def _cpuinfo() -> dict[str, str]:
    """What the kernel says of the first processor (proc_cpuinfo(5))."""
    with suppress(OSError):
        first = _CPUINFO.read_text(errors="replace").split("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return {}
