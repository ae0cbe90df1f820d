"""Coverage-guided fuzzing of what virtual USB devices hear of a hostile guest, with Atheris (libFuzzer).

It begins with the streams that are kept with the tests, and ends at the first one that breaks what
`bench.usbredir_target.check` promises, or that takes too long or too much memory. Atheris is no dependency of
the project: `pip install atheris` first.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

INSTRUMENTED = ["pytest_kvmlab.drivers", "bench.usbredir_target"]
TRACED = "pytest_kvmlab/drivers/"
LIMITS = ("-timeout=5", "-rss_limit_mb=512", "-max_len=4096")
AS_TARGET = "--as-target"


def fuzz_here(arguments: list[str]) -> None:
    """Be libFuzzer, in this process, which it ends."""
    atheris = import_module("atheris")
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = import_module("bench.usbredir_target")
    atheris.Setup([sys.argv[0], *arguments], target.check)
    atheris.Fuzz()


def run_libfuzzer(*arguments: object) -> int:
    """Be libFuzzer in a process of its own: 0 if nothing was found."""
    words = [str(argument) for argument in arguments]
    command = [sys.executable, "-m", "bench.fuzz_usbredir", AS_TARGET, *LIMITS, *words]
    return subprocess.run(command, check=False).returncode


def reached(check: Callable[[bytes], None], attempt: bytes) -> set[tuple[str, int, int]]:
    """The steps from line to line that an attempt makes in what is tested."""
    steps = set()
    last = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal last
        if TRACED not in frame.f_code.co_filename:
            return None
        if event == "line":
            steps.add((frame.f_code.co_filename, last, frame.f_lineno))
            last = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        check(attempt)
    finally:
        sys.settrace(None)
    return steps


def worth_keeping(check: Callable[[bytes], None], attempts: Iterable[bytes]) -> Iterator[bytes]:
    """Those that reach what no shorter one does."""
    known: set[tuple[str, int, int]] = set()
    for attempt in sorted(attempts, key=len):
        if new := reached(check, attempt) - known:
            known |= new
            yield attempt


def fuzz(seconds: int, *, keep: bool) -> int:
    """Fuzz from the tests' streams.

    Args:
        seconds: how long.
        keep: whether to add to them what reaches new code.

    Returns:
        0 if nothing was found; what was is in a file beside, as libFuzzer says.
    """
    target = import_module("bench.usbredir_target")  # late: as libFuzzer, this process instruments it first
    with tempfile.TemporaryDirectory(prefix="usbredir-") as name:
        folder = Path(name)
        for number, attempt in enumerate(target.read_corpus()):
            (folder / f"{number:04}").write_bytes(attempt)
        status = run_libfuzzer(f"-max_total_time={seconds}", "-print_final_stats=1", folder)
        if status == 0 and keep:
            found = [path.read_bytes() for path in folder.iterdir()]
            target.write_corpus([*target.read_corpus(), *worth_keeping(target.check, found)])
    return status


def main() -> int:
    """Fuzz, and fail if something was found."""
    if sys.argv[1:2] == [AS_TARGET]:
        fuzz_here(sys.argv[2:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--keep", action="store_true", help="add what reaches new code to the tests' streams")
    arguments = parser.parse_args()
    return fuzz(arguments.seconds, keep=arguments.keep)


if __name__ == "__main__":
    sys.exit(main())
