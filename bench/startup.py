"""What a plain `pytest` pays for the installed plugin: an empty suite with it and without it, in turns."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MOST_MILLISECONDS = 15.0


def seconds(arguments: list[str], folder: str) -> float:
    """How long one pytest takes on an empty folder."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False)
    return time.perf_counter() - started


def measure(runs: int) -> dict[str, float]:
    """Medians in milliseconds, taken alternately so that a busy moment hits both alike."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(seconds(["-p", "no:kvmlab"], folder), seconds([], folder)) for _ in range(runs + 2)][2:]
    without, with_plugin = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
    more = statistics.median((second - first) * 1000 for first, second in pairs)
    return {"without_ms": without, "with_ms": with_plugin, "more_ms": more, "most_ms": MOST_MILLISECONDS}


def main() -> int:
    """Measure, print, and fail if the plugin costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    figures = measure(options.runs)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))
    for name, value in figures.items():
        print(f"{name:12} {value:8.1f}")
    return 0 if figures["more_ms"] < MOST_MILLISECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
