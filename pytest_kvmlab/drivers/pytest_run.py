"""The door to pytest as a program: one run of somebody's suite, seen as it goes."""

import subprocess
import sys
from collections.abc import Sequence


def run_pytest(arguments: Sequence[str]) -> int:
    """Run pytest with this Python, on this terminal, to its end.

    Args:
        arguments: of its command line.

    Returns:
        Its exit status: https://docs.pytest.org/en/stable/reference/exit-codes.html

    Raises:
        KeyboardInterrupt: somebody pressed Ctrl-C, which pytest heard, too, and has ended by now.
    """
    command = [sys.executable, "-m", "pytest", *arguments]
    # What a script reads is our own standard output.
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise
