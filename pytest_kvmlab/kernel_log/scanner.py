"""From the bytes of a console or of a kernel's log to findings, in linear time and bounded memory.

What is scanned comes from a guest and may be anything: escapes that move a terminal's cursor, bytes that are
no UTF-8, a hundred megabytes without a line break.
"""

import re
from collections.abc import Iterable, Iterator

from pytest_kvmlab.kernel_log.finding import Finding, Kind
from pytest_kvmlab.kernel_log.patterns import CONTINUED, CUT, ENDS, PATTERNS, TRIGGERS, WHERE, Pattern

MOST_FINDINGS = 200
MOST_STACK_LINES = 60
_MOST_LINES_BETWEEN = 200
_MOST_PREFACE_LINES = 5
_LONGEST_LINE = 4096
_LONGEST_SHOWN = 300
_BLOCK = 65536
# A report is printed at once; what comes later is of something else.
_REPORT_SECONDS = 1.0

_TRIGGERS = tuple(trigger.encode() for trigger in (*TRIGGERS, CUT))
# ECMA-48: control sequences, and escapes of two characters.
_ESCAPE = re.compile(r"\x1b(\[[0-?]{0,64}[ -/]{0,8}[@-~]|[@-Z\\-_])")
# printk's time, the caller that CONFIG_PRINTK_CALLER adds, and the level of `dmesg --raw`. A message may
# start in the middle of a line that somebody else was writing.
_STAMP = re.compile(r"\[ {0,8}(\d{1,8}\.\d{6})\](\[ *[TC]\d+\])? ?")
_LEVEL = re.compile(r"<\d{1,3}>")

_Line = tuple[float | None, str]


def scan(chunks: Iterable[bytes]) -> list[Finding]:
    """Find what a kernel complained about.

    Args:
        chunks: the bytes of a console or of `dmesg`, in pieces of any size.

    Returns:
        The findings in their order; after `MOST_FINDINGS` the rest is not looked at.
    """
    found = _Findings()
    for block in _blocks(chunks):
        if found.is_open or any(trigger in block for trigger in _TRIGGERS):
            for line in _lines(block):
                found.add(line)
        if found.full:
            break
    return found.close()


def _blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Whole lines in pieces of about `_BLOCK`; a line that is longer than that is cut."""
    rest = b""
    for chunk in chunks:
        for start in range(0, len(chunk), _BLOCK):
            block = rest + chunk[start : start + _BLOCK]
            end = block.rfind(b"\n") + 1
            if not end and len(block) > _BLOCK:
                end = len(block)
            if end:
                yield block[:end]
            rest = block[end:]
    yield rest


def _lines(block: bytes) -> Iterator[bytes]:
    for line in block.split(b"\n"):
        for start in range(0, len(line), _LONGEST_LINE):
            yield line[start : start + _LONGEST_LINE]


class _Findings:
    """Findings as they grow line by line."""

    def __init__(self) -> None:
        self._done: list[Finding] = []
        self._report: _Report | None = None
        self._preface: list[str] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the next lines may belong to what was found."""
        return self._report is not None or self._preface is not None

    @property
    def full(self) -> bool:
        return len(self._done) >= MOST_FINDINGS

    def add(self, line: bytes) -> None:
        told = any(trigger in line for trigger in _TRIGGERS)
        if not self.is_open and not told:
            return
        time, text = _read(line)
        if CUT in text:
            self._end()
            self._preface = []
            return
        pattern = _complaint(text) if told else None
        if self._report and not self._report.takes(time, text, pattern):
            self._end()
        if pattern and self._report is None and not self.full:
            self._report = _Report(pattern.kind, time, text, self._preface or [])
            self._preface = None
            if not pattern.report:
                self._end()
        elif self._preface is not None:
            self._preface = [*self._preface, text] if len(self._preface) < _MOST_PREFACE_LINES else None

    def _end(self) -> None:
        if self._report:
            self._done.append(self._report.finding())
        self._report = None

    def close(self) -> list[Finding]:
        self._end()
        return self._done


class _Report:
    """A complaint and the lines after it that belong to it."""

    def __init__(self, kind: Kind, time: float | None, title: str, preface: list[str]) -> None:
        self._kind, self._time, self._title = kind, time, title
        self._where = ""
        self._stack = preface
        self._between = 0
        self._ended = False

    def takes(self, time: float | None, text: str, pattern: Pattern | None) -> bool:
        """Add a line, if it belongs here."""
        if self._ended or (pattern and (self._kind, pattern.kind) not in CONTINUED):
            return False
        if self._time is not None:
            if time is None:  # somebody else's line
                self._between += 1
                return self._between < _MOST_LINES_BETWEEN
            if not 0 <= time - self._time < _REPORT_SECONDS:
                return False
        self._stack.append(text)
        self._ended = len(self._stack) >= MOST_STACK_LINES or any(end in text for end in ENDS)
        if found := WHERE.match(text):
            self._where = self._where or found[1]
        return True

    def finding(self) -> Finding:
        # Where a lockup or a panic was noticed is chance, and a warning's title has its function.
        where = self._where if self._kind in ("oops", "bug") else ""
        return Finding(self._kind, self._title, self._time, where, tuple(self._stack))


def _complaint(text: str) -> Pattern | None:
    return next(
        (pattern for pattern in PATTERNS if pattern.trigger in text and pattern.line.match(text)), None
    )


def _read(line: bytes) -> _Line:
    """The time that the kernel wrote before a line, and the line itself, fit to be shown."""
    text = _ESCAPE.sub("", line.decode("utf-8", "replace"))
    stamp = _STAMP.search(text)
    time = float(stamp[1]) if stamp else None
    rest = text[stamp.end() :] if stamp else _LEVEL.sub("", text, count=1)
    return time, _printable(rest[:_LONGEST_SHOWN]).rstrip()


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(filter(str.isprintable, text))
