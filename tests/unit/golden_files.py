"""Golden files, and libvirt's own opinion of them."""

import os
import subprocess
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden"
SCHEMAS = Path("/usr/share/libvirt/schemas")


def golden(file: Path, printed: str) -> str:
    """What a golden file says; with `REGENERATE_GOLDEN=1` in the environment, what was printed."""
    if os.environ.get("REGENERATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(printed)
    return file.read_text()


def valid(xml: str, schema: str) -> bool:
    """Ask libvirt's own schema."""
    command = ["xmllint", "--noout", "--nonet", "--relaxng", str(SCHEMAS / schema), "-"]
    checked = subprocess.run(command, input=xml.encode(), capture_output=True, timeout=60, check=False)
    assert checked.returncode in (0, 3), checked.stderr.decode()
    return checked.returncode == 0
