"""A run as a page: its tests, their times, what their guests showed."""

import base64
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_kvmlab.drivers.serial_protocol import for_people
from pytest_kvmlab.report.lab_picture import LabPicture, picture_of
from pytest_kvmlab.report.page import rendered
from pytest_kvmlab.report.timeline import Timeline, timeline_of
from pytest_kvmlab.spec.run_record import FindingRecord, GuestRecord, Outcome, RunRecord, TestRecord

# A page of a thousand tests is to stay under 20 MB.
_ALL_CONSOLES = 8 * 2**20
_ALL_PICTURES = 4 * 2**20
_LONGEST_CONSOLE = 64 * 1024
_LARGEST_PICTURE = 512 * 1024
_MOST_COMMANDS = 100
_LONGEST_COMMAND = 500
_HOST_TIME = re.compile(r"^\[ *[0-9.]+\] ?")
_PNG = b"\x89PNG\r\n\x1a\n"
_BAD: tuple[Outcome, ...] = ("failed", "error", "xpassed")


@dataclass(frozen=True)
class Piece:
    """A part of a console: what a finding says is marked."""

    text: str
    marked: bool


@dataclass(frozen=True)
class Command:
    """A command that a test ran in a guest."""

    text: str
    seconds: float
    outcome: str


@dataclass(frozen=True)
class GuestView:
    """A guest as the page shows it.

    Attributes:
        record: what the run wrote down.
        console: its console, in pieces; empty if it stands with another test.
        commands: what it was asked.
        picture: its screen as a `data:` address, or nothing.
        shown_at: the anchor of the test where its console stands, if that is another one.
    """

    record: GuestRecord
    console: Sequence[Piece]
    commands: Sequence[Command]
    picture: str
    shown_at: str


@dataclass(frozen=True)
class TestView:
    """A test as the page shows it."""

    __test__ = False  # not one of pytest's own

    record: TestRecord
    anchor: str
    bad: bool
    timeline: Timeline
    guests: Sequence[GuestView]
    lab: LabPicture | None


def run_page(record: RunRecord, artifacts: Path) -> str:
    """Make the page of a run.

    Args:
        record: the run.
        artifacts: the folder that consoles and pictures are in, below the folders that the record names.

    Raises:
        ConfigError: the libraries for pages are not installed.
    """
    outcomes = Counter(test.outcome for test in record.tests)
    return rendered(
        "run.html",
        run=record,
        outcomes=outcomes,
        bad=sum(outcomes[each] for each in _BAD),
        kernels=sorted({guest.kernel for test in record.tests for guest in test.guests if guest.kernel}),
        tests=list(_Views(record, artifacts).tests()),
    )


class _Views:
    """Reads what the page shows of each guest, until the page is large enough."""

    def __init__(self, record: RunRecord, artifacts: Path) -> None:
        self._record = record
        self._artifacts = artifacts
        folders = {guest.folder for test in record.tests for guest in test.guests}
        self._share = max(2048, min(_LONGEST_CONSOLE, _ALL_CONSOLES // (len(folders) or 1)))
        self._picture_bytes = _ALL_PICTURES
        self._shown: dict[str, str] = {}

    def tests(self) -> Iterator[TestView]:
        for number, test in enumerate(self._record.tests, 1):
            anchor = f"test-{number}"
            yield TestView(
                test,
                anchor,
                test.outcome in _BAD,
                timeline_of(test),
                [self._guest(guest, anchor) for guest in test.guests],
                picture_of(test.guests),
            )

    def _guest(self, guest: GuestRecord, anchor: str) -> GuestView:
        """The console of a shared guest stands with its first test."""
        folder = self._artifacts / guest.folder
        shown_at = self._shown.setdefault(guest.folder, anchor)
        if shown_at != anchor or not folder.resolve().is_relative_to(self._artifacts.resolve()):
            return GuestView(guest, (), (), "", shown_at)
        console = list(_marked(_tail(folder / "console.log", self._share), guest.findings))
        return GuestView(guest, console, list(_commands(folder)), self._picture(folder), "")

    def _picture(self, folder: Path) -> str:
        with suppress(OSError), (folder / "screenshot.png").open("rb") as file:
            data = file.read(_LARGEST_PICTURE + 1)
            if data.startswith(_PNG) and len(data) <= min(_LARGEST_PICTURE, self._picture_bytes):
                self._picture_bytes -= len(data)
                return f"data:image/png;base64,{base64.b64encode(data).decode()}"
        return ""


def _tail(path: Path, most: int) -> str:
    """The end of a console log, without what our commands and the guest's shell said to each other."""
    with suppress(OSError), path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - most))
        text = file.read(most).decode("utf-8", "replace")
        if size > most:
            text = f"… {size - most} bytes before are not shown\n{text.partition(chr(10))[2]}"
        return "\n".join(for_people(_HOST_TIME.sub("", line) for line in text.splitlines()))
    return ""


def _marked(console: str, findings: Sequence[FindingRecord]) -> Iterator[Piece]:
    """The console with the lines marked that findings are about."""
    titles = tuple(finding.title for finding in findings)
    plain: list[str] = []
    for line in console.splitlines():
        if any(title in line for title in titles):
            yield Piece("\n".join([*plain, ""]), marked=False)
            yield Piece(line, marked=True)
            plain = [""]
        else:
            plain.append(line)
    yield Piece("\n".join(plain), marked=False)


def _commands(folder: Path) -> Iterator[Command]:
    """The commands in a guest's journal, the last ones if they are many."""
    with suppress(OSError, ValueError):
        lines = (folder / "journal.jsonl").read_text().splitlines()
        events: list[Mapping[str, Any]] = [json.loads(line) for line in lines]
        for event in [each for each in events if each["kind"] == "command"][-_MOST_COMMANDS:]:
            yield Command(event["name"][:_LONGEST_COMMAND], event["seconds"], event["outcome"])
