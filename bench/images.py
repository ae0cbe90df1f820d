"""Images built, imported and laid over, beside the same by hand with mmdebstrap, mke2fs and qemu-img.

`python -m bench.images`: every pair in turns, in one run. By hand means the least that anyone would type,
without locks and without a boot loader; neither build downloads anything.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from pytest_kvmlab.lab.build import build
from pytest_kvmlab.lab.disks import overlay
from pytest_kvmlab.lab.importing import ImportRequest, import_image
from pytest_kvmlab.lab.recipes import find_recipe
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.plan.guest import DiskFile
from pytest_kvmlab.spec.lock import parse_lock
from pytest_kvmlab.spec.manifest import LOCK
from pytest_kvmlab.spec.recipe import DebianKeys, load_recipe

MOST_RATIO = 1.2
RECIPE = "debian-12"
EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}


def unwatched(_step: str, _share: float | None) -> None:
    pass


def run(*command: str | Path, **environment: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | environment, timeout=3600)


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


class Build:
    """The image debian-12: a tree, a file system, a disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = Store(folder / "store")
        image = build(find_recipe(RECIPE), self._store, progress=unwatched)
        lock = image.folder / LOCK
        keys = load_recipe(find_recipe(RECIPE)).keys
        assert isinstance(keys, DebianKeys)
        self._names = keys.packages
        self._repository = folder / "repository"
        self._repository.mkdir()
        for package in parse_lock(lock.read_bytes(), source=str(lock)):
            os.link(self._store.packages / f"{package.sha256}.deb", self._repository / f"{package.name}.deb")
        with (self._repository / "Packages").open("w") as packages:
            scan = ["dpkg-scanpackages", "--multiversion", "."]
            subprocess.run(scan, check=True, cwd=self._repository, stdout=packages, stderr=subprocess.DEVNULL)
        self.disk = image.folder / "disk.qcow2"

    def ours(self) -> None:
        """The same image in a store that has its packages and nothing else."""
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            store = Store(Path(name))
            run("cp", "--recursive", "--link", self._store.packages, store.packages)
            build(find_recipe(RECIPE), store, progress=unwatched)

    def by_hand(self) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            work = Path(name)
            source = f"deb [trusted=yes] copy:{self._repository} ./"
            include = f"--include={','.join(self._names)}"
            hook = f'--customize-hook=mke2fs -q -t ext4 -d "$1" {work}/disk.raw 3900M'
            run(
                "mmdebstrap",
                "--quiet",
                "--variant=apt",
                include,
                hook,
                "",
                work / "root.tar",
                source,
                **EPOCH,
            )
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", work / "disk.raw", work / "disk.qcow2")


class Import:
    """A disk of another maker's into the store."""

    def __init__(self, disk: Path, image_format: str, folder: Path) -> None:
        self._folder = folder
        self._format = image_format
        self._file = folder / f"foreign.{image_format}"
        run("qemu-img", "convert", "-f", "qcow2", "-O", image_format, disk, self._file)

    def ours(self) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            request = ImportRequest("foreign", self._file, None, {}, (), 2**40)
            import_image(request, Store(Path(name)), progress=unwatched)

    def by_hand(self) -> None:
        """A checked copy with its hash, in the format that a guest gets an overlay of."""
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            copy = Path(name, "copy")
            if self._format in ("qcow2", "vmdk", "vdi"):
                run("qemu-img", "check", "-q", "-f", self._format, self._file)
            run("qemu-img", "convert", "-f", self._format, "-O", "qcow2", self._file, copy)
            run("sha256sum", self._file)
            run("sha256sum", copy)


class Overlay:
    """What a guest writes to."""

    def __init__(self, disk: Path, folder: Path) -> None:
        self._disk, self._file = disk, folder / "overlay.qcow2"

    def ours(self) -> None:
        overlay(DiskFile(self._disk, "qcow2"), self._file).renew()

    def by_hand(self) -> None:
        self._file.unlink(missing_ok=True)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", self._disk, self._file)


def measure(pair: Build | Import | Overlay, runs: int) -> dict[str, float]:
    """Medians, taken in turns so that a busy moment hits both alike."""
    pairs = [(seconds(pair.by_hand), seconds(pair.ours)) for _ in range(runs)]
    hand, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"by_hand_s": hand, "ours_s": ours, "ratio": statistics.median(b / a for a, b in pairs)}


def main() -> int:
    """Measure, print, and fail where we take longer than we may."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=3, help="of builds and imports; overlays take ten times as many"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with ExitStack() as folders:
        folder = Path(folders.enter_context(tempfile.TemporaryDirectory(prefix="images-", dir="/var/tmp")))
        made = Build(folder)
        pairs = {
            f"import of {name}": Import(made.disk, name, folder) for name in ("qcow2", "raw", "vmdk", "vdi")
        }
        figures["overlay"] = measure(Overlay(made.disk, folder), options.runs * 10)
        figures |= {name: measure(pair, options.runs) for name, pair in pairs.items()}
        figures[f"build of {RECIPE}"] = measure(made, options.runs)
    for name, row in figures.items():
        told = f"by hand {row['by_hand_s']:8.3f} s, ours {row['ours_s']:8.3f} s"
        print(f"{name:20} {told}, ratio {row['ratio']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))
    return 0 if all(row["ratio"] <= MOST_RATIO for row in figures.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
