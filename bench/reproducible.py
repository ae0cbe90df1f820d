"""Two builds of one image in different folders, from one lock: `python -m bench.reproducible debian-12`.

The second build runs in another time zone and with another umask. What is compared is the SHA-256 of every
file of the image. Images `from` another are not for this: their parents would have to be built twice, too.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from pytest_kvmlab.lab.build import build
from pytest_kvmlab.lab.recipes import find_recipe, recipes
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.spec.manifest import LOCK


def unwatched(_step: str, _share: float | None) -> None:
    pass


def built(recipe: str, store: Store, lock: Path | None) -> tuple[Image, float]:
    """An image, and the seconds that it took."""
    started = time.perf_counter()
    return build(find_recipe(recipe), store, lock=lock, progress=unwatched), time.perf_counter() - started


def hashes(image: Image) -> dict[str, str]:
    return {name: record.sha256 for name, record in image.manifest.files.items()}


def compare(recipe: str, folder: Path) -> dict[str, object]:
    """Build twice, and say which files differ."""
    first, first_seconds = built(recipe, Store(folder / "one"), None)
    os.environ["TZ"] = "Pacific/Chatham"
    time.tzset()
    os.umask(0o077)
    lock = first.file(LOCK)
    second, second_seconds = built(recipe, Store(folder / "elsewhere" / "two"), lock)
    differing = [name for name in hashes(first) if hashes(first)[name] != hashes(second).get(name)]
    return {
        "image": recipe,
        "first_seconds": round(first_seconds, 1),
        "second_seconds": round(second_seconds, 1),
        "sha256": first.sha256,
        "differing": differing + (["manifest.json"] if first.sha256 != second.sha256 else []),
    }


def main() -> int:
    """Build, print, and fail if a byte differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "recipes", nargs="*", default=["micro"], metavar="RECIPE", help=f"of {', '.join(recipes())}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    options = parser.parse_args()
    figures = []
    for recipe in options.recipes:
        with tempfile.TemporaryDirectory(prefix="reproducible-", dir="/var/tmp") as folder:
            figures.append(compare(recipe, Path(folder)))
        print(json.dumps(figures[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))
    return 1 if any(figure["differing"] for figure in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
