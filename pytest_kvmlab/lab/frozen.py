"""A guest as it was at one moment, from which it can be started again and again."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pytest_kvmlab.drivers.console_log import transcript_of
from pytest_kvmlab.drivers.serial_shell import Session
from pytest_kvmlab.errors import ImageError

Channel = Literal["serial", "ssh"]

BLANKS, STATE, CONSOLE, FIRMWARE = "blank{}.qcow2", "state", "console.log", "uefi-vars.fd"


@dataclass(frozen=True)
class Rest:
    """What a guest waits for that has nothing to do.

    Attributes:
        session: the server of commands that waits at its serial line, if it has a shell there.
        clock: the command that sets its clock, with `{}` for the seconds since the epoch.
        channel: over which it may be set.
        agent: whether its guest agent answered.
    """

    session: Session | None
    clock: str
    channel: Channel
    agent: bool


@dataclass(frozen=True)
class Frozen:
    """One guest of a template.

    Attributes:
        folder: holds the state of its devices, its disks, its console and its keys.
        memory: the file that is its memory.
        sha256: of the state.
        rest: what it waited for.
        disks: what it wrote to, in its folder.
    """

    folder: Path
    memory: Path
    sha256: str
    rest: Rest
    disks: tuple[Path, ...]

    @property
    def state(self) -> Path:
        """The state of its devices, as QEMU sent it."""
        return self.folder / STATE

    @property
    def console(self) -> Path:
        """What its console showed until then; the bytes as received are beside it."""
        return self.folder / CONSOLE

    @property
    def shown(self) -> int:
        """How many bytes its console had shown."""
        return transcript_of(self.console).stat().st_size

    def blank(self, number: int) -> Path:
        """An overlay, in which nothing is written yet, on one of its disks."""
        return self.folder / BLANKS.format(number)

    def as_document(self) -> dict[str, Any]:
        """Write it down, for another process of the run."""
        paths = {"folder": str(self.folder), "memory": str(self.memory)}
        return asdict(self) | paths | {"disks": [str(disk) for disk in self.disks]}

    @classmethod
    def of(cls, document: dict[str, Any]) -> "Frozen":
        """Read what `as_document` wrote."""
        return cls(
            folder=Path(document["folder"]),
            memory=Path(document["memory"]),
            sha256=str(document["sha256"]),
            rest=_rest_of(document["rest"]),
            disks=tuple(map(Path, document["disks"])),
        )


def _rest_of(document: dict[str, Any]) -> Rest:
    session, channel = document["session"], document["channel"]
    return Rest(
        Session(*session) if session else None,
        str(document["clock"]),
        "ssh" if channel == "ssh" else "serial",
        bool(document["agent"]),
    )


def read_record(path: Path) -> list[Frozen]:
    """The guests of a template.

    Raises:
        ImageError: the record is damaged, or something that it names is not as it was when that was written.
    """
    try:
        record = json.loads(path.read_text())
        guests = [Frozen.of(document) for document in record["guests"]]
        changed = [file for file, stamp in record["files"].items() if _stamp(Path(file)) != stamp]
        changed += [guest.state for guest in guests if _sha256(guest.state) != guest.sha256]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ImageError(f"a template's record is damaged: {error}", looked_at=[path]) from error
    if changed:
        raise ImageError("a template is damaged", looked_at=changed)
    return guests


def write_record(path: Path, guests: Sequence[Frozen]) -> None:
    """Write a template down, whole or not at all: without its record, it is none."""
    files = {str(file): _stamp(file) for guest in guests for file in _files(guest)}
    record = {"guests": [guest.as_document() for guest in guests], "files": files}
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(record, indent=1))
    fresh.rename(path)


def _files(guest: Frozen) -> Iterator[Path]:
    yield guest.memory
    yield from guest.folder.iterdir()


def _stamp(file: Path) -> list[int]:
    """What changes when a file is cut short or written to: to read a guest's memory would take too long."""
    found = file.stat()
    return [found.st_size, found.st_mtime_ns]


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
