"""What a guest leaves for a person: files among the artifacts, and a few lines for the report of a test."""

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pytest_kvmlab.errors import GuestError, KvmlabError
from pytest_kvmlab.journal import Event
from pytest_kvmlab.lab.guest import Guest

_CONSOLE_LINES = 25
_COMMANDS = 8


@dataclass(frozen=True)
class Evidence:
    """One guest at the moment when a test failed.

    Attributes:
        guest: its name.
        folder: where its files are.
        screenshot: the picture of its screen, if it has one.
        console: the last lines of its console.
        commands: the last commands that it was given.
        phases: how far it came, and how long each step took.
    """

    guest: str
    folder: Path
    screenshot: Path | None
    console: tuple[str, ...]
    commands: tuple[Event, ...]
    phases: tuple[Event, ...]


def forget_files(folder: Path) -> None:
    """Remove what an earlier run kept under the same name, so that nobody takes it for this one's.

    Args:
        folder: a guest's folder among the artifacts, there or not.
    """
    shutil.rmtree(folder, ignore_errors=True)


def keep_files(guest: Guest, folder: Path) -> None:
    """Copy what a guest's folder has for a person: console, XML, events.

    Args:
        guest: a guest that was switched on, running or not.
        folder: where to; made if need be. A full disk loses files, not the test.
    """
    machine = guest.machine
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        # Not the log that QEMU writes: it shows a password that the guest was too slow to hide.
        files = {"console.log": machine.console_log, "serial.log": machine.transcript}
        for name, source in {**files, "domain.xml": machine.xml_file}.items():
            if source.exists():
                shutil.copyfile(source, folder / name)
        lines = [json.dumps(asdict(event)) for event in machine.journal.events()]
        (folder / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines))


def gather(guest: Guest, folder: Path) -> Evidence:
    """Look at a guest while it is still there, and keep its files.

    Args:
        guest: a guest that was switched on.
        folder: its folder among the artifacts.
    """
    keep_files(guest, folder)
    journal = guest.machine.journal
    return Evidence(
        guest=guest.name,
        folder=folder,
        screenshot=_screenshot(guest, folder / "screenshot.png"),
        console=_console(guest),
        commands=tuple(journal.of(guest.name, "command")[-_COMMANDS:]),
        phases=tuple(journal.of(guest.name, "phase")),
    )


def _console(guest: Guest) -> tuple[str, ...]:
    with suppress(GuestError):  # it was never switched on
        return tuple(guest.machine.serial.tail(_CONSOLE_LINES))
    return ()


def _screenshot(guest: Guest, path: Path) -> Path | None:
    with suppress(KvmlabError, OSError):
        path.unlink(missing_ok=True)
        return guest.screenshot(path)
    return None


def describe(evidence: Evidence) -> str:
    """The evidence as the section of a test report."""
    return "\n".join(_lines(evidence))


def _lines(evidence: Evidence) -> Iterator[str]:
    yield "phases: " + (", ".join(map(_phase, evidence.phases)) or "none")
    if evidence.commands:
        yield "last commands:"
        yield from (f"  {_command(event)}" for event in evidence.commands)
    yield "console:"
    yield from (f"  {line}" for line in evidence.console or ("(nothing)",))
    if evidence.screenshot:
        yield f"screenshot: {evidence.screenshot}"
    yield f"files: {evidence.folder}"


def _phase(event: Event) -> str:
    return f"{event.name} {event.seconds:.2f} s" + (" (failed)" if event.outcome else "")


def _command(event: Event) -> str:
    return f"{event.name!r} {event.seconds:.2f} s {event.outcome}".rstrip()
