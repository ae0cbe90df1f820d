"""The door to xorriso: a bootable CD-ROM in a file, the same each time."""

from collections.abc import Mapping
from pathlib import Path

from pytest_kvmlab.drivers.program import run

_SECONDS = 300
_MADE_AT = "946684800"  # the year 2000
_MADE_AT_IN_WORDS = "2000010100000000"


def make(disc: Path, label: str, files: Mapping[str, Path], boot_image: str) -> None:
    """Make a disc that a BIOS boots by El Torito, "no emulation".

    Times, owners and identifiers are fixed, so that equal arguments and an equal version of xorriso give
    equal bytes: xorrisofs(1), `SOURCE_DATE_EPOCH`.

    Args:
        disc: the file to make.
        label: the name of the volume, at most 32 capital letters, digits and `_`.
        files: what is on it, by path without a leading slash.
        boot_image: the path of the one that the BIOS starts; the disc's copy gets a table of where it is.

    Raises:
        HostError: xorriso is not installed.
        ImageError: a file cannot be read, or the disc cannot be written.
    """
    names = [f"/{_escaped(name)}={_escaped(str(path.absolute()))}" for name, path in sorted(files.items())]
    boot = ["-b", boot_image, "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    dates = [f"--modification-date={_MADE_AT_IN_WORDS}", "--set_all_file_dates", _MADE_AT_IN_WORDS]
    how = ["-quiet", "-r", "-V", label, *dates, *boot, "-o", str(disc.absolute())]
    run(
        ["xorriso", "-as", "mkisofs", *how, "-graft-points", *names],
        package="xorriso",
        timeout=_SECONDS,
        environment={"SOURCE_DATE_EPOCH": _MADE_AT, "TZ": "UTC"},
    )


def _escaped(path: str) -> str:
    r"""In a graft point, `=` ends the name on the disc, and `\` says that the next character means itself."""
    return path.replace("\\", "\\\\").replace("=", "\\=")
