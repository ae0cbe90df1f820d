"""Runs that never took place, for what compares them."""

import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from pytest_kvmlab.kernel_log.finding import Kind
from pytest_kvmlab.spec.run_record import (
    DeviceRecord,
    FindingRecord,
    GuestRecord,
    HostRecord,
    Outcome,
    PhaseRecord,
    RunRecord,
    SystemRecord,
    TestRecord,
)


def luck(seed: int) -> random.Random:
    """Samples that are the same each time."""
    return random.Random(seed)  # noqa: S311 -- no secret


VIRTIO = DeviceRecord(bus="pci", id="1af4:1041", driver="virtio-pci")


def finding(title: str, kind: Kind = "warning", *, excused: bool = False) -> FindingRecord:
    return FindingRecord(
        kind=kind,
        title=title,
        identity=f"{kind}: {title}",
        count=1,
        excuse="expected" if excused else "",
        excused=excused,
        stack=("Call Trace:", f" {title}+0x1/0x2"),
    )


def guest(
    *,
    phases: Mapping[str, float] | None = None,
    findings: Sequence[FindingRecord] = (),
    system: str = "",
    kernel: str = "6.1.0-1-amd64",
    name: str = "web",
) -> GuestRecord:
    return GuestRecord(
        name=name,
        image="debian-12",
        image_identity="0" * 64,
        kernel=kernel,
        folder=f"test_shop.py-test_it/{name}-main-1",
        networks=(),
        tainted="",
        system=system,
        phases=tuple(
            PhaseRecord(name=phase, started=1e9, seconds=seconds, outcome="")
            for phase, seconds in (phases or {}).items()
        ),
        findings=tuple(findings),
    )


def case(
    name: str,
    outcome: Outcome = "passed",
    *guests: GuestRecord,
    call: float = 0.5,
    attempts: int = 1,
    message: str = "",
) -> TestRecord:
    return TestRecord(
        id=f"test_shop.py::{name}",
        outcome=outcome,
        started=1e9,
        seconds={"setup": 1.0, "call": call, "teardown": 0.1},
        message=message,
        infrastructure=False,
        attempts=attempts,
        guests=guests,
    )


def system(
    *modules: str, devices: Sequence[DeviceRecord] = (VIRTIO,), kernel: str = "6.1.0-1-amd64"
) -> SystemRecord:
    return SystemRecord(kernel=kernel, modules=modules, devices=tuple(devices))


def host(pressure: float | None) -> HostRecord:
    return HostRecord(
        kernel="6.1.0-1-amd64",
        architecture="x86_64",
        processor="",
        microcode="",
        processors=2,
        kind="private",
        libvirt="9.0.0",
        qemu="7.2.0",
        accelerator="kvm",
        accelerator_why="",
        cpu_pressure=pressure,
    )


def run(
    *tests: TestRecord,
    systems: Mapping[str, SystemRecord] | None = None,
    pressure: float | None = None,
) -> RunRecord:
    return RunRecord(
        plugin="0.1.0",
        suite="shop",
        started=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=60.0,
        exit_status=0,
        host=host(pressure),
        systems=systems or {},
        tests=tests,
    )
