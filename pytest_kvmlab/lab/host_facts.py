"""What this machine is, for the record of a run."""

import os
import platform
from contextlib import suppress
from pathlib import Path

from pytest_kvmlab.lab.run import Run
from pytest_kvmlab.spec.run_record import HostRecord

_CPUINFO = Path("/proc/cpuinfo")


def host_record(run: Run) -> HostRecord:
    """Describe where the guests of a run are.

    Args:
        run: this process's part in it.
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
    )


def _cpuinfo() -> dict[str, str]:
    """What the kernel says of the first processor (proc_cpuinfo(5))."""
    with suppress(OSError):
        first = _CPUINFO.read_text(errors="replace").split("\n\n")[0]
        pairs = (line.partition(":") for line in first.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return {}
