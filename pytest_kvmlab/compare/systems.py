"""What guests had before and lack now: drivers, devices, modules; and what their kernels say only now."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_kvmlab.spec.run_record import DeviceRecord, FindingRecord, GuestRecord, RunRecord, SystemRecord


@dataclass(frozen=True)
class Loss:
    """Something that a guest had in each run before, and has in none now.

    Attributes:
        guest: its name and image.
        what: `device`, `driver` or `module`.
        name: which one.
        regression: whether that is bad: a module that another version of the kernel does without is not.
    """

    guest: str
    what: str
    name: str
    regression: bool


@dataclass(frozen=True)
class Message:
    """Something that a kernel complained about on one side only.

    Attributes:
        finding: the complaint.
        test: a test in which it was.
    """

    finding: FindingRecord
    test: str


def label(guest: GuestRecord) -> str:
    """What a guest is called in comparisons: runs are compared by it."""
    return f"{guest.name} ({guest.image})"


def new_messages(before: Sequence[RunRecord], after: Sequence[RunRecord]) -> list[Message]:
    """The complaints of kernels that are on the second side only; swapped, those that are gone.

    Args:
        before: the runs to compare with.
        after: the runs of now.
    """
    known = _messages(before)
    return [message for identity, message in _messages(after).items() if identity not in known]


def _messages(runs: Iterable[RunRecord]) -> dict[str, Message]:
    found: dict[str, Message] = {}
    for run in runs:
        for test in run.tests:
            for finding in (finding for guest in test.guests for finding in guest.findings):
                found.setdefault(finding.identity, Message(finding, test.id))
    return found


def losses(before: Sequence[RunRecord], after: Sequence[RunRecord]) -> list[Loss]:
    """What guests had and have no more, each thing once.

    A guest is compared with that of the same test: another test may have asked for one with a dongle more.

    Args:
        before: the runs to compare with.
        after: the runs of now; a guest that is not in them has lost nothing.
    """
    earlier, later = _systems(before), _systems(after)
    common = [key for key in earlier if key in later]
    return list(dict.fromkeys(loss for key in common for loss in _losses(key[1], earlier[key], later[key])))


def _systems(runs: Iterable[RunRecord]) -> dict[tuple[str, str], list[SystemRecord]]:
    """The systems of each test's guests, by the test's id and the guest's label."""
    found: dict[tuple[str, str], list[SystemRecord]] = {}
    for run in runs:
        for test in run.tests:
            for guest in (guest for guest in test.guests if guest.system in run.systems):
                found.setdefault((test.id, label(guest)), []).append(run.systems[guest.system])
    return found


def _losses(guest: str, before: Sequence[SystemRecord], after: Sequence[SystemRecord]) -> Iterable[Loss]:
    there = set.intersection(*({_device(each) for each in system.devices} for system in before))
    now = {_device(each) for system in after for each in system.devices}
    for device in sorted(there - now):
        yield Loss(guest, "device", device, regression=True)
    driven = set.intersection(*(_driven(system) for system in before))
    for device in sorted((driven & now) - {each for system in after for each in _driven(system)}):
        yield Loss(guest, "driver", f"of {device}", regression=True)
    modules = set.intersection(*(set(system.modules) for system in before))
    same_kernel = {system.kernel for system in before} == {system.kernel for system in after}
    for module in sorted(modules - {module for system in after for module in system.modules}):
        yield Loss(guest, "module", module, regression=same_kernel)


def _device(device: DeviceRecord) -> str:
    return f"{device.bus} {device.id}"


def _driven(system: SystemRecord) -> set[str]:
    return {_device(device) for device in system.devices if device.driver}
