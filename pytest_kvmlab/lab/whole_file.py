"""A file that is there whole or not at all."""

import os
import re
import tempfile
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all, so that whoever reads it meanwhile reads all of the former one.

    Args:
        path: the file; its folder is made if need be.
        text: its new content.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        try:
            file.write(text)
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            file.close()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise


def _umask() -> int:
    """What this process leaves out of the modes of its files: proc_pid_status(5)."""
    found = re.search(r"^Umask:\s+([0-7]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1], 8) if found else 0o077
