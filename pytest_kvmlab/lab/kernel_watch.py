"""What the kernel of one guest complains about, heard on its console and read in its log."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.errors import KvmlabError
from pytest_kvmlab.kernel_log.console_level import shows_warnings
from pytest_kvmlab.kernel_log.finding import Finding
from pytest_kvmlab.kernel_log.question import QUESTION, Answer, read_answer
from pytest_kvmlab.kernel_log.scanner import scan
from pytest_kvmlab.kernel_log.taint import flags, taint_findings
from pytest_kvmlab.lab.commands import Commands

_QUESTION_SECONDS = 2.0
_CATCH_UP_SECONDS = 1.0
_PIECE_BYTES = 2**20


@dataclass(frozen=True)
class Inspection:
    """What was new when a guest was looked at.

    Attributes:
        findings: what its kernel complained about since it was last looked at.
        answer: what its shell said about the kernel, if it was asked and answered.
    """

    findings: tuple[Finding, ...]
    answer: Answer | None


class KernelWatch:
    """Listens to the kernel of one guest.

    Args:
        guest: the guest, switched on or not.
    """

    def __init__(self, guest: Commands) -> None:
        self._guest = guest
        self._heard = 0
        self._known: set[tuple[str, float | None]] = set()
        self._taint = ""
        self._found_before: list[Finding] = []

    @property
    def hears_all(self) -> bool:
        """Whether the guest's kernel shows all of its complaints on the console, and need not be asked."""
        boot = self._guest.machine.plan.boot
        return boot is not None and boot.cmdline is not None and shows_warnings(boot.cmdline)

    def look(self, *, ask: bool) -> Inspection:
        """Find out what is new.

        Args:
            ask: also ask the guest's shell, where its kernel is quiet on the console. Only a guest to which
                there is a connection is asked: to make one would take its time.
        """
        answer = self.ask() if ask and not self.hears_all and self._guest.connected else None
        logged = answer.findings if answer else ()
        findings = [*self._found_before, *self._unknown([*logged, *scan(self._console())])]
        self._found_before.clear()
        if answer:
            new = "".join(flag for flag in flags(answer.tainted) if flag not in self._taint)
            self._taint += new
            findings += taint_findings(new, [finding.kind for finding in findings])
        return Inspection(tuple(findings), answer)

    def look_before_it_ends(self) -> None:
        """Look now, and tell with the next look: what the kernel says is about to be over."""
        self._found_before += self.look(ask=True).findings

    def begin_anew(self) -> None:
        """Expect a kernel that boots: it has no taint yet."""
        self._taint = ""

    def skip(self, shown: int) -> None:
        """Go on behind what the console of a guest shows that was set back, and that was heard before.

        Args:
            shown: so many bytes.
        """
        self._heard = shown

    def ask(self) -> Answer | None:
        """Ask the guest's shell; None if it does not answer, or there is none."""
        with suppress(KvmlabError, AssertionError):
            if self._guest.machine.is_on:
                return read_answer(self._guest.ask(QUESTION, self._guest.deadline(_QUESTION_SECONDS)).stdout)
        return None

    def _unknown(self, findings: Iterable[Finding]) -> Iterator[Finding]:
        """Those that are heard of for the first time; most are on the console and in the log."""
        for finding in findings:
            if finding.event not in self._known:
                self._known.add(finding.event)
                yield finding

    def _console(self) -> Iterator[bytes]:
        """What the console has shown since last time, in whole lines: half of one would be no complaint.

        Of what a babbling guest shows when its file is full, the newest is looked at.
        """
        if self._guest.machine.was_on:
            self._guest.machine.console.catch_up(Deadline(_CATCH_UP_SECONDS))
        with suppress(OSError), Path(self._guest.machine.transcript).open("rb") as file:
            file.seek(self._heard)
            while lines := _whole_lines(file.read(_PIECE_BYTES)):
                self._heard += len(lines)
                file.seek(self._heard)
                yield lines
        if self._guest.machine.was_on:
            yield self._guest.machine.console.unwritten()


def _whole_lines(piece: bytes) -> bytes:
    """A piece without its unfinished last line, unless nothing but a line without end would be left."""
    return piece[: piece.rfind(b"\n") + 1] or (piece if len(piece) == _PIECE_BYTES else b"")
