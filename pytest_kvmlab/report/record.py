"""A guest of a test, put into the record of a run."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from pytest_kvmlab.journal import Event
from pytest_kvmlab.kernel_log.question import Answer
from pytest_kvmlab.kernel_log.taint import flags
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.report.kernel import Complaint, same_complaints
from pytest_kvmlab.spec.kernel import split_image
from pytest_kvmlab.spec.run_record import (
    CardRecord,
    DeviceRecord,
    FindingRecord,
    GuestRecord,
    PhaseRecord,
    SystemRecord,
)

_STACK_LINES = 40
_KEY_LETTERS = 12


def system_record(answer: Answer) -> tuple[str, SystemRecord]:
    """What a guest's shell said about its system, and the key by which records of guests refer to it.

    Equal systems have equal keys, so that a thousand tests write down one system.
    """
    devices = tuple(DeviceRecord(bus=each.bus, id=each.id, driver=each.driver) for each in answer.devices)
    record = SystemRecord(kernel=answer.release, modules=answer.modules, devices=devices)
    return hashlib.sha256(record.model_dump_json().encode()).hexdigest()[:_KEY_LETTERS], record


def guest_record(
    guest: Guest,
    *,
    answer: Answer | None,
    inventory: Answer | None,
    complaints: Iterable[Complaint],
    events: Iterable[Event],
    template: Iterable[Event],
    folder: str,
) -> GuestRecord:
    """Describe a guest as a test had it.

    Args:
        guest: the guest, which may be gone.
        answer: what its shell said about its kernel, if it was asked.
        inventory: what the first guest of its kind said when it was ready.
        complaints: what its kernel complained about.
        events: what happened to it during the test.
        template: what happened to the template that it was cloned from, if that was made in this test.
        folder: where its files are, below the folder of artifacts.
    """
    return GuestRecord(
        name=guest.name,
        image=split_image(guest.spec.image)[0],  # the kernel is told apart
        image_identity=guest.image_identity,
        kernel=answer.release if answer else guest.kernel,
        folder=folder,
        networks=tuple(
            CardRecord(
                network=keys.name or keys.mode, mac=card.mac, simulated_bridge=card.simulated_bridge or ""
            )
            for keys, card in zip(guest.spec.networks, guest.nics, strict=False)
        ),
        dongles=tuple(keys.called for keys in guest.spec.usb),
        tainted=flags(answer.tainted) if answer else "",
        system=system_record(inventory)[0] if inventory else "",
        phases=(*_phases(template, "template "), *_phases(events)),
        findings=tuple(map(_finding, same_complaints(complaints))),
    )


def _phases(events: Iterable[Event], prefix: str = "") -> Iterator[PhaseRecord]:
    for event in (event for event in events if event.kind == "phase"):
        yield PhaseRecord(
            name=f"{prefix}{event.name}",
            started=max(0.0, event.at - event.seconds),
            seconds=event.seconds,
            outcome=event.outcome,
        )


def _finding(group: Sequence[Complaint]) -> FindingRecord:
    finding, excuse = group[0].finding, group[0].excuse
    return FindingRecord(
        kind=finding.kind,
        title=finding.title,
        identity=finding.identity,
        count=len(group),
        excuse=excuse.why,
        excused=excuse.holds,
        stack=finding.stack[:_STACK_LINES],
    )
