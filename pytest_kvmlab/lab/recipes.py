"""The recipes at hand, and how one is told from another."""

import hashlib
import json
import shlex
from importlib import resources
from pathlib import Path

from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.spec.names import nearest
from pytest_kvmlab.spec.recipe import RECIPE_FILE, Recipe, load_recipe

# Part of every image's identity: raise it whenever this package builds other bytes of the same recipe.
BUILDER = 2


def recipes() -> dict[str, Path]:
    """The recipes that come with this package.

    Returns:
        The folder of each by the name of its image.
    """
    shipped = Path(str(resources.files("pytest_kvmlab").joinpath("images")))
    return {file.parent.name: file.parent for file in sorted(shipped.glob(f"*/{RECIPE_FILE}"))}


def find_recipe(wish: str) -> Path:
    """Find a recipe that somebody names.

    Args:
        wish: the name of a recipe that comes with this package, or, with a slash, the folder of a recipe.

    Returns:
        Its folder.

    Raises:
        ImageError: there is no recipe of that name.
        ConfigError: a recipe of somebody's has the name of one that comes with this package, whose image a
            test that asks for it would build again in its place.
    """
    shipped = recipes()
    if "/" not in wish and wish in shipped:
        return shipped[wish]
    if "/" not in wish:
        raise ImageError(
            f"there is no recipe '{wish}'{nearest(wish, shipped)}",
            f"known recipes: {', '.join(shipped)}; the folder of one of your own has a slash: ./{wish}",
        )
    folder = Path(wish).resolve()
    if folder.name in shipped and folder != shipped[folder.name].resolve():
        raise ConfigError(
            f"the name of {folder} is that of a recipe that comes with this package", "give it another name"
        )
    return folder


def command_to_build(folder: Path) -> str:
    """What a person types to build the image of a recipe.

    Args:
        folder: the recipe's.
    """
    shipped = recipes().get(folder.resolve().name)
    is_shipped = shipped is not None and shipped.resolve() == folder.resolve()
    return f"kvmlab image build {folder.resolve().name if is_shipped else shlex.quote(str(folder.resolve()))}"


def lineage(recipe: Recipe) -> list[Recipe]:
    """A recipe, and the recipes of this package that its image grows from, the nearest first.

    Args:
        recipe: the recipe of an image that is to be built.

    Raises:
        ConfigError: the image grows from itself, by way of those that the message names, so that each would
            wait for the others; or a recipe on the way is wrong.
    """
    shipped, found, way = recipes(), [recipe], [recipe.name]
    while origin := found[-1].origin:
        way.append(origin)
        if origin in way[:-1]:
            raise ConfigError(
                f"the image '{origin}' cannot grow from itself: {' from '.join(way)}",
                "correct 'from' in one of these recipes",
            )
        if origin not in shipped:
            break
        found.append(load_recipe(shipped[origin]))
    return found


def recipe_digest(recipe: Recipe) -> str:
    """Say which recipe this is.

    Args:
        recipe: the recipe.

    Returns:
        A hexadecimal digest of its files, of the builder's format, and of the recipes of this package that
        its image grows from: who changes one of these changes what the image is made of.
    """
    own, *below = (_files_digest(each.folder) for each in lineage(recipe))
    return _digest(json.dumps([own, *below]).encode()) if below else own


def identity(recipe: Recipe, *inputs: object) -> str:
    """Say what an image is made of.

    Args:
        recipe: its recipe.
        inputs: what else its bytes depend on, such as exact packages, or its parent; anything JSON can hold.

    Returns:
        A hexadecimal digest.
    """
    return _digest(json.dumps([recipe.name, recipe_digest(recipe), *inputs]).encode())


def _files_digest(folder: Path) -> str:
    digests = {str(path.relative_to(folder)): _digest(path.read_bytes()) for path in _files(folder)}
    return _digest(json.dumps([BUILDER, digests], sort_keys=True).encode())


def _files(folder: Path) -> list[Path]:
    """Leaves out what editors leave behind."""
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith("~")]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
