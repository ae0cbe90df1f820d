"""From a recipe to an image in the store."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab.base_image import StartsGuests
from pytest_kvmlab.lab.blueprint import Blueprint
from pytest_kvmlab.lab.debian_image import debian_blueprint
from pytest_kvmlab.lab.initramfs_image import initramfs_blueprint
from pytest_kvmlab.lab.installing import installer_blueprint
from pytest_kvmlab.lab.kernel_image import kernel_blueprint
from pytest_kvmlab.lab.kernels import Kernel, find_kernel, kernel_of, new_kernel
from pytest_kvmlab.lab.layering import Rescue, layer_blueprint
from pytest_kvmlab.lab.recipes import command_to_build, lineage, recipe_digest, recipes
from pytest_kvmlab.lab.store import Image, OtherVersionsImage, Store
from pytest_kvmlab.lab.tree import installed
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.kernel import ITS_OWN, image_with, split_image
from pytest_kvmlab.spec.lock import LockedPackage, parse_lock
from pytest_kvmlab.spec.manifest import LOCK, TREE
from pytest_kvmlab.spec.names import nearest
from pytest_kvmlab.spec.recipe import (
    DebianKeys,
    InitramfsKeys,
    InstallerKeys,
    LayerKeys,
    Recipe,
    Suite,
    load_recipe,
)


def ensure(
    name: str,
    store: Store,
    *,
    guests: StartsGuests | None = None,
    kernels: Sequence[Kernel] = (),
    progress: Progress,
) -> Image:
    """Get an image, built now if there is none of the recipe as it is.

    An image of the unchanged recipe is used as it is, even if the archive has newer packages by now: that is
    quick, needs no network, and a run does not change what it tests. `build` looks for newer ones.

    Args:
        name: the image; or, with another kernel than its own, `debian-12+6.12`.
        store: where images live.
        guests: starts guests, where building may need them.
        kernels: kernels that are named as they are here, and not looked for.
        progress: told what is being done, if something is.

    Returns:
        The image.

    Raises:
        ImageError: there is no such image and no recipe for it, it is damaged, or building fails.
        ConfigError: the recipe is wrong.
        HostError: a program that building needs is missing.
    """
    base, kernel = split_image(name)
    if kernel != ITS_OWN:
        below = ensure(base, store, guests=guests, progress=progress)
        return _with_kernel(below, kernel, store, kernels, progress)
    folder = recipes().get(name)
    image = _found(name, store, can_be_built=folder is not None)
    if image and (folder is None or image.manifest.recipe == recipe_digest(load_recipe(folder))):
        return image
    if folder is None:
        known = [*recipes(), *store.names()]
        raise ImageError(
            f"there is no image '{name}'{nearest(name, known)}",
            f"known images: {', '.join(dict.fromkeys(known))}",
            looked_at=[store.root],
        )
    return build(folder, store, guests=guests, progress=progress)


def _found(name: str, store: Store, *, can_be_built: bool) -> Image | None:
    """The image of that name, if there is one; another version's is as good as none if it can be built."""
    try:
        return store.find(name)
    except OtherVersionsImage:
        if can_be_built:
            return None
        raise


def _with_kernel(base: Image, wish: str, store: Store, own: Sequence[Kernel], progress: Progress) -> Image:
    """An image with another kernel: the one that is there, if it still is what it would be made of."""
    if base.manifest.kernel_version == wish:
        return base
    there = _found(image_with(base.name, wish), store, can_be_built=True)
    given = next((kernel for kernel in own if kernel.name == wish), None)
    kernel = given or (kernel_of(there, wish) if there else None)
    if kernel is None:
        release = find_kernel(wish, base.manifest.suite, store)
        if release != wish:
            return _with_kernel(base, release, store, own, progress)
        tree = base.file(TREE)
        status = installed(tree) if tree else ""
        kernel = new_kernel(release, base.manifest.suite, status, store)
    with base.lock_shared(), TemporaryDirectory() as empty:
        blueprint = kernel_blueprint(base, kernel, store, Path(empty), progress=progress)
        if there and there.manifest.identity == blueprint.identity:
            return there
        return _built(image_with(base.name, kernel.name), lambda: blueprint, store, progress)


def build(
    recipe_folder: Path,
    store: Store,
    *,
    guests: StartsGuests | None = None,
    rescue: Rescue | None = None,
    lock: Path | None = None,
    progress: Progress,
) -> Image:
    """Build an image of the packages in its lock, or of the newest, unless exactly that is there already.

    Args:
        recipe_folder: the folder of the recipe; its name becomes the image's.
        store: where the image goes.
        guests: starts guests, where building may need them.
        rescue: gets the guest in which a recipe's `setup.sh` failed; where that ran without a guest, the
            terminal gets a shell in its place.
        lock: names the exact packages; None: `image.lock` in the recipe's folder, if there is one.
        progress: told what is being done.

    Returns:
        The image.

    Raises:
        ImageError: a package cannot be had, the store cannot be written to, or a step fails.
        ConfigError: the recipe is wrong.
        HostError: a program that building needs is missing.
    """
    recipe = load_recipe(recipe_folder)
    lineage(recipe)  # refuses one that grows from itself
    with ExitStack() as held:
        builder = _Builder(store, guests, rescue, lock, progress, held)
        return _built(recipe.name, lambda: builder.blueprint(recipe), store, progress)


def _built(name: str, blueprint_of: Callable[[], Blueprint], store: Store, progress: Progress) -> Image:
    """Build an image, unless exactly that is there; of several processes only one does."""
    waiting = f"waiting for another process that builds the image {name}"
    with store.building(name, waiting=lambda: progress(waiting, None)) as folder:
        blueprint = blueprint_of()
        there = store.intact(blueprint.identity)
        if there:
            store.name(there)
            return there
        image = folder / "image"
        image.mkdir()
        return store.publish(image, blueprint.make(folder))


@dataclass(frozen=True)
class _Builder:
    """What building an image may need.

    Attributes:
        store: where images below it come from.
        guests: starts guests.
        rescue: gets the guest in which a `setup.sh` failed.
        lock: names the exact packages.
        progress: told what is being done.
        held: locks to be held until the image is in its place.
    """

    store: Store
    guests: StartsGuests | None
    rescue: Rescue | None
    lock: Path | None
    progress: Progress
    held: ExitStack

    def blueprint(self, recipe: Recipe) -> Blueprint:
        match recipe.keys:
            case InitramfsKeys() as keys:
                locked = self._locked(recipe)
                return initramfs_blueprint(recipe, keys, self.store, locked=locked, progress=self.progress)
            case DebianKeys() as keys:
                parent = None if isinstance(keys.origin, Suite) else self._origin(keys.origin)
                return debian_blueprint(
                    recipe,
                    keys,
                    parent,
                    self.store,
                    locked=self._locked(recipe),
                    shell_on_failure=self.rescue is not None,
                    progress=self.progress,
                )
            case InstallerKeys() as keys:
                if keys.iso:
                    self._refuse_lock(recipe)
                return installer_blueprint(
                    recipe,
                    keys,
                    self.store,
                    self._guests(recipe),
                    locked=self._locked(recipe),
                    progress=self.progress,
                )
            case LayerKeys() as keys:
                self._refuse_lock(recipe)
                parent = self._origin(keys.origin)
                guests = self._guests(recipe)
                return layer_blueprint(
                    recipe, keys, parent, guests, progress=self.progress, rescue=self.rescue
                )

    def _refuse_lock(self, recipe: Recipe) -> None:
        if self._locked(recipe) is not None:
            raise ConfigError(
                f"image '{recipe.name}' is not built of packages, and has no lock",
                f"build it without --lock, and remove {recipe.folder / LOCK} if it is there",
            )

    def _locked(self, recipe: Recipe) -> tuple[LockedPackage, ...] | None:
        """The exact packages that somebody wrote down, if somebody did."""
        file = self.lock or recipe.folder / LOCK
        if self.lock is None and not file.exists():
            return None
        try:
            return parse_lock(file.read_bytes(), source=str(file))
        except OSError as error:
            raise ConfigError(f"the lock {file} cannot be read: {error.strerror}") from error

    def _origin(self, name: str) -> Image:
        """The image that another one grows from, which nobody removes meanwhile."""
        image = ensure(name, self.store, guests=self.guests, progress=self.progress)
        self.held.enter_context(image.lock_shared())
        return image

    def _guests(self, recipe: Recipe) -> StartsGuests:
        if self.guests is None:
            raise ImageError(
                f"building the image '{recipe.name}' needs a guest, and there is nothing here to start one",
                command_to_build(recipe.folder),
            )
        return self.guests
