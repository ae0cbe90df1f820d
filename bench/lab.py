"""Labs: how much longer two guests take than one of them, and as many guests at once as a platform runs.

`python -m bench.lab`: a pair by boots and by clones, in turns with one of its guests, which are alike, alone
in the same network; then a lab of twelve guests: up, reached over SSH, and gone.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.figures import Figure, report
from bench.reset import Bench, open_bench
from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.keeper.reap import run_processes
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.waits import until
from pytest_kvmlab.spec.labfile import SUFFIX, LabSpec, load_lab
from pytest_kvmlab.spec.options import Reset, resolve_options

MOST_RATIO = 1.3
MANY = 12
BOOTS, CLONES = 3, 7
MIB = 2**20
_GONE_SECONDS = 60.0


def lab_of(guests: Mapping[str, str]) -> LabSpec:
    """A lab of guests in one network, by name the image of each."""
    text = '[network.campus]\nmode = "nat"\n'
    for name, image in guests.items():
        text += f'[guest.{name}]\nimage = "{image}"\nnetworks = ["campus"]\n'
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"bench{SUFFIX}")
        file.write_text(text)
        return load_lab(file)


def to_ready(launcher: Launcher, lab: LabSpec) -> float:
    """Seconds from nothing to a lab whose guests are all ready."""
    started = time.perf_counter()
    with launcher.lab(lab, source="bench", witness=lambda *_: False):
        seconds = time.perf_counter() - started
    launcher.failures()  # until it has ended in the background, it would disturb the next one
    return seconds


def pair_over_one(launcher: Launcher, image: str, runs: int) -> tuple[float, str]:
    """How many times as long two guests take as one of them alone, and the seconds of both.

    In turns, so that a busy moment hits both alike; the first turn, in which templates are made, is thrown
    away.
    """
    labs = lab_of({"web": image, "db": image}), lab_of({"web": image})
    turns = [[to_ready(launcher, lab) for lab in labs] for _ in range(runs + 1)][1:]
    pair, one = (statistics.median(column) for column in zip(*turns, strict=True))
    return pair / one, f"{pair:.2f} s / {one:.2f} s"


def many(bench: Bench, reset: Reset) -> Iterator[Figure]:
    """Many guests at once."""
    lab = lab_of({f"guest{number}": "micro" for number in range(MANY)})
    with bench.launcher(reset) as launcher:
        if reset == "clone":
            to_ready(launcher, lab)
        started = time.perf_counter()
        with launcher.lab(lab, source="bench", witness=lambda *_: False) as up:
            yield Figure(f"{MANY} micro guests by {reset}: seconds to ready", time.perf_counter() - started)
            with ThreadPoolExecutor(MANY) as pool:
                answers = list(pool.map(lambda guest: guest.succeed("echo $((41+1))"), up.values()))
            took = time.perf_counter() - started
            told = f"after {took:.1f} s"
            yield Figure("  that answered over SSH", answers.count("42\n"), told, at_least=MANY)
            yield Figure("  MiB of memory that each takes", memory_of(bench) / MIB / MANY)
            started = time.perf_counter()
        launcher.failures()
        until(lambda: not guests_of(bench) or None, Deadline(_GONE_SECONDS))
        took = time.perf_counter() - started
        yield Figure("  still there at last", len(guests_of(bench)), f"gone after {took:.1f} s", at_most=0)


def guests_of(bench: Bench) -> list[int]:
    """The processes of the run that are guests."""
    return [number for number in run_processes(bench.run.host.folder) if _is_guest(number)]


def _is_guest(process: int) -> bool:
    try:
        return b"guest=kvl-" in Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return False


def memory_of(bench: Bench) -> int:
    """Bytes that the guests take; what several share counts once (proc(5), smaps_rollup)."""
    sizes = 0
    for process in guests_of(bench):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                sizes += int(line.split()[1]) * 1024
    return sizes


def measure(bench: Bench, image: str, runs: int) -> Iterator[Figure]:
    """Every figure, one after the other."""
    with bench.launcher("boot") as boots:
        ratio, told = pair_over_one(boots, image, runs)
    yield Figure("two guests to ready by boot, over one alone", ratio, told, at_most=MOST_RATIO)
    with bench.launcher("clone") as clones:
        ratio, told = pair_over_one(clones, image, CLONES)
    yield Figure("two guests to ready by clone, over one alone", ratio, told)
    for reset in ("boot", "clone"):
        yield from many(bench, reset)


def main() -> int:
    """Measure, print, and fail if one figure falls short."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=BOOTS, help="boots of the pair")
    parser.add_argument("--image", default="debian-12", help="of the pair")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    with open_bench(resolve_options({"lab": True}, os.environ, {})) as bench:
        return report(measure(bench, arguments.image, arguments.runs), arguments.json)


if __name__ == "__main__":
    sys.exit(main())
