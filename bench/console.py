"""Lines of a console that get lost while machine and test process compute, with and without the line buffer.

A guest prints all that its kernel has to say while it boots, with a busy loop for each processor and two more
beside it, and another in a thread of the test process. What its kernel's log has, and its console has not
shown, is lost.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.figures import Figure, report

_SUITE = """
import os
import threading
from pathlib import Path

import pytest
from pytest_kvmlab.drivers.line_buffer import LineBuffer

if os.environ["BUFFER"] == "none":
    LineBuffer.before = lambda self, line: line

def compute():
    while True:
        pass

threading.Thread(target=compute, daemon=True).start()

@pytest.mark.parametrize("number", range(int(os.environ["BOOTS"])))
@pytest.mark.kvm(image="micro", cmdline="console=ttyS0 loglevel=8", boot_timeout=300)
def test_boots(guest, number):
    shown = guest.serial.log.replace("\\r", "")
    lines = guest.succeed("dmesg").splitlines()
    with Path("lost").open("a") as file:
        file.write("".join(f"{line.strip() not in shown:d}\\n" for line in lines))
"""


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep processors busy as long as the context lasts."""
    with ExitStack() as ended:
        for _ in range(loops):
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            ended.callback(loop.wait)
            ended.callback(loop.kill)
        yield


def lost(boots: int, buffer: str) -> tuple[int, int]:
    """How many lines were lost, and how many there were."""
    with tempfile.TemporaryDirectory() as name, busy((os.cpu_count() or 1) + 2):
        folder = Path(name)
        (folder / "test_it.py").write_text(_SUITE)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--kvm-lab",
            "--kvm-reset=boot",
            "-p",
            "no:cacheprovider",
        ]
        environment = os.environ | {"BUFFER": buffer, "BOOTS": str(boots)}
        subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
        lines = (folder / "lost").read_text().split()
    return lines.count("1"), len(lines)


def measure(boots: int) -> Iterator[Figure]:
    """With the buffer no line may be lost, if root measures: only root is served before others."""
    for buffer, most in (("none", None), ("process", 0.0 if os.geteuid() == 0 else None)):
        count, lines = lost(boots, buffer)
        name = "lines lost, of a thousand, with line buffer: " + buffer
        yield Figure(name, 1000 * count / lines, f"{count} of {lines}", at_most=most)


def main() -> int:
    """Measure, print, and fail if a line was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boots", type=int, default=6)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    return report(measure(options.boots), options.json)


if __name__ == "__main__":
    sys.exit(main())
