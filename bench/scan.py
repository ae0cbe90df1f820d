"""How fast consoles are scanned for complaints of a kernel, and whether twice as much takes twice as long.

With `--runs`, also what scanning and recording cost a suite of micro guests: with and without, in turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from pytest_kvmlab.kernel_log.patterns import TRIGGERS
from pytest_kvmlab.kernel_log.scanner import scan

MIB = 2**20
LEAST_MIB_PER_SECOND = 2.0
# Twice the bytes may take so many times as long.
MOST_GROWTH = 3.0
MOST_SHARE = 0.03

_TESTS = """
import pytest

@pytest.mark.kvm(image="micro")
@pytest.mark.parametrize("number", range({tests}))
def test_it(guest, number):
    guest.succeed("true")
"""
_WITHOUT = ("-p", "no:kvmlab-kernel-checks", "-p", "no:kvmlab-recording")

_BOOT = b"[    3.907976] usb usb1: Product: xHCI Host Controller\r\n"
_TEMPTING = "".join(f"[    1.000001] a line with {trigger} in it\r\n" for trigger in TRIGGERS).encode()
CONSOLES: dict[str, bytes] = {
    "ordinary lines": _BOOT * 1000,
    "a trigger in every line": _TEMPTING * 50,
    "no line break": b"x" * MIB,
    "escapes": b"\x1b[31m\x1b[0m\x1b]0;" * 5000,
    "no UTF-8": bytes(range(128, 256)) * 500 + b"\n",
    "brackets": b"[[[[[[[[[ 1.000000] BUG" * 2000,
}


def repeated(pattern: bytes, size: int) -> Iterator[bytes]:
    """Pieces of about a mebibyte, as they are read from a file."""
    piece = pattern * max(1, MIB // len(pattern))
    for _ in range(max(1, size // len(piece))):
        yield piece


def seconds(work: Callable[[], object]) -> float:
    """The shorter of two tries."""
    tries = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        tries.append(time.perf_counter() - started)
    return min(tries)


def measure(pattern: bytes, size: int) -> dict[str, float]:
    """How fast, and how much longer the double takes."""
    half = seconds(lambda: scan(repeated(pattern, size // 2)))
    whole = seconds(lambda: scan(repeated(pattern, size)))
    return {"mib_per_second": size / MIB / whole, "growth": whole / half}


def suite(folder: str, *arguments: str) -> float:
    """How long the tests take, the way up and down of the run left out: the sum of pytest's own times."""
    report = Path(folder) / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--kvm-lab",
        f"--junitxml={report}",
    ]
    subprocess.run([*command, *arguments], cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return sum(float(case.get("time", 0)) for case in ET.parse(report).iter("testcase"))  # noqa: S314  our own pytest wrote it


def overhead(runs: int, tests: int) -> dict[str, float]:
    """Seconds of a suite without and with scanning and recording; medians, taken alternately."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_it.py").write_text(_TESTS.format(tests=tests))
        pairs = [(suite(folder, *_WITHOUT), suite(folder)) for _ in range(runs + 1)][1:]
    without, with_both = (statistics.median(column) for column in zip(*pairs, strict=True))
    more = statistics.median(second - first for first, second in pairs)
    return {"without_s": without, "with_s": with_both, "share": more / without}


def main() -> int:
    """Measure, print, and fail if it is slow, not linear, or costs too much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=100, help="how much is scanned of each kind")
    parser.add_argument("--runs", type=int, default=0, help="how often a suite is run with and without")
    parser.add_argument("--tests", type=int, default=20, help="how many tests the suite has")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    figures = {name: measure(pattern, options.mib * MIB) for name, pattern in CONSOLES.items()}
    cost = overhead(options.runs, options.tests) if options.runs else {}
    if options.json:
        options.json.write_text(json.dumps({"consoles": figures, "suite": cost}, indent=2))
    for name, figure in figures.items():
        print(f"{name:26} {figure['mib_per_second']:8.1f} MiB/s   twice as much: x {figure['growth']:.2f}")
    slow = [each for each in figures.values() if each["mib_per_second"] < LEAST_MIB_PER_SECOND]
    steep = [each for each in figures.values() if each["growth"] > MOST_GROWTH]
    for name, value in cost.items():
        print(f"{name:26} {value:8.3f}")
    return 1 if slow or steep or cost.get("share", 0.0) > MOST_SHARE else 0


if __name__ == "__main__":
    sys.exit(main())
