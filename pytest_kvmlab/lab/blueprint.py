"""What every kind of image has in common while it is built."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.lab.recipes import recipe_digest
from pytest_kvmlab.lab.store import record
from pytest_kvmlab.spec.manifest import Manifest
from pytest_kvmlab.spec.recipe import Recipe


@dataclass(frozen=True)
class Blueprint:
    """An image that could be built: all its inputs are known, and none of its bytes.

    Attributes:
        identity: hexadecimal digest of the inputs.
        make: fills the folder `image` inside an empty folder, on the store's file system, and says what the
            image is; whatever else it leaves there is removed.
    """

    identity: str
    make: Callable[[Path], Manifest]


def manifest(recipe: Recipe, blueprint_identity: str, image: Path, **told: object) -> Manifest:
    """Write down what was built.

    Args:
        recipe: what it was built from.
        blueprint_identity: hexadecimal digest of its inputs.
        image: the folder with its files, complete.
        told: further fields of the manifest.

    Returns:
        The manifest, with a record of each file.
    """
    return Manifest.model_validate(
        {
            "name": recipe.name,
            "kind": recipe.keys.kind,
            "identity": blueprint_identity,
            "recipe": recipe_digest(recipe),
            "files": {path.name: record(path) for path in sorted(image.iterdir())},
            "guest": recipe.guest,
            **told,
        }
    )
