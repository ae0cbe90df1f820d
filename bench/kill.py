"""Kill real runs at random moments, start the next, and count what is left: `python -m bench.kill`.

In turns pytest, a worker of `pytest -n 2` and the keeper are killed with SIGKILL, each at a moment drawn
uniformly from the duration of a whole run. What is counted must be 0.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.guest.leftovers import Traces
from tests.guest.started_run import in_role

TARGETS = ("pytest", "worker", "keeper")
KINDS = ("process", "mount", "interface", "file", "lock", "namespace")
TESTS = """
import pytest

@pytest.mark.kvm(image="micro")
@pytest.mark.parametrize("number", range(2))
def test_guest(guest, number):
    assert guest.succeed("uname -s").strip() == "Linux"
"""
LONGEST_SECONDS = 300.0


@dataclass
class Killed:
    """One run: who was killed, when, and what was left before and after the next start."""

    target: str
    moment: float
    duration: float = 0.0
    hit: bool = False
    exit_status: int = 0
    before: dict[str, list[str]] = field(default_factory=dict)
    after: dict[str, list[str]] = field(default_factory=dict)


def start(folder: Path, target: str) -> "subprocess.Popen[bytes]":
    """Start pytest in a folder, with its runs in `runs`."""
    (folder / "runs").mkdir(mode=0o700, exist_ok=True)
    (folder / "test_guests.py").write_text(TESTS)
    workers = ("-n", "2") if target == "worker" else ()
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "--kvm-lab", "-q", "-p", "no:cacheprovider", *workers],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"KVMLAB_RUNS": str(folder / "runs")},
    )


def victims(target: str, owner: "subprocess.Popen[bytes]", runs: Path) -> list[int]:
    """Processes that are the target; none as long as it has not been started."""
    if target == "pytest":
        return [owner.pid]
    return in_role(target, [str(runs)])


def kill_one(target: str, moment: float) -> Killed:
    """Start a run, kill the target at the moment, or as soon after it as there is one, and look around."""
    killed = Killed(target, moment)
    with tempfile.TemporaryDirectory(prefix="kvl-", dir="/tmp") as name:
        folder, runs = Path(name), Path(name) / "runs"
        started = time.monotonic()
        owner = start(folder, target)
        traces = Traces.of(runs)
        while owner.poll() is None and time.monotonic() - started < LONGEST_SECONDS:
            traces |= Traces.of(runs)
            if not killed.hit and time.monotonic() - started >= moment:
                killed.hit = kill(victims(target, owner, runs))
            time.sleep(0.05)
        killed.duration = time.monotonic() - started
        owner.kill()
        killed.exit_status = owner.wait()
        killed.before = traces.left()
        reap(runs)
        killed.after = (traces | Traces.of(runs)).left_at_last()
    return killed


def kill(processes: list[int]) -> bool:
    """Kill one of several; whether there was one."""
    if processes:
        os.kill(random.choice(processes), signal.SIGKILL)  # noqa: S311 - chance, not a secret
    return bool(processes)


def reap(runs: Path) -> None:
    """What the next run does first."""
    command = [sys.executable, "-c", "from pytest_kvmlab.cli import app; app(['reap'])"]
    subprocess.run(
        command, check=True, env=os.environ | {"KVMLAB_RUNS": str(runs)}, stdout=subprocess.DEVNULL
    )


def show(number: int, killed: Killed) -> None:
    """Print one line of the table, and what was left in full."""
    counts = "".join(f"{len(killed.after.get(kind, ())):>11}" for kind in KINDS)
    # A run that was quicker than the one that was timed ends by itself, and must leave nothing, too.
    moment = f"{killed.moment:6.2f} s" if killed.hit else "   ended"
    print(f"{number:>3} {killed.target:8} {moment} {counts}", flush=True)
    for kind, things in killed.after.items():
        print(f"      {kind}: {things}", flush=True)


def measure(runs: int, seed: int) -> list[Killed]:
    """Time a whole run for each target, then kill."""
    random.seed(seed)
    timed = {target: kill_one(target, LONGEST_SECONDS) for target in TARGETS[:2]}
    if any(run.exit_status for run in timed.values()):
        raise SystemExit("a run that nobody kills does not pass, so there is nothing to measure")
    whole = {target: run.duration for target, run in timed.items()}
    whole["keeper"] = whole["pytest"]
    print(f"seed {seed}; a whole run: {whole['pytest']:.1f} s, with two workers {whole['worker']:.1f} s")
    print(f"{'':3} {'killed':8} {'after':>8} " + "".join(f"{kind:>11}" for kind in KINDS), flush=True)
    results: list[Killed] = []
    while (hits := sum(killed.hit for killed in results)) < runs:
        target = TARGETS[hits % len(TARGETS)]
        moment = random.uniform(0, whole[target])  # noqa: S311 - chance, not a secret
        results.append(kill_one(target, moment))
        show(len(results), results[-1])
    return results


def main() -> int:
    """Kill, print, and fail if anything is left."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    options = parser.parse_args()
    results = measure(options.runs, options.seed)
    left = sum(len(things) for killed in results for things in killed.after.values())
    if options.json:
        document = {"seed": options.seed, "left": left, "runs": [asdict(killed) for killed in results]}
        options.json.write_text(json.dumps(document, indent=1))
    print(f"{sum(killed.hit for killed in results)} of {len(results)} runs killed; left: {left}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
