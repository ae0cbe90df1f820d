"""Images of kind `debian`: a Debian system on a whole disk, and its kernel for whoever starts it directly."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.drivers import debian, kernel, qemu_img
from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab.blueprint import Blueprint, manifest
from pytest_kvmlab.lab.disk_image import ROOT_LABEL, kernel_of, make_disk
from pytest_kvmlab.lab.recipes import identity
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.lab.tree import build_tree, installed
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.lock import LockedPackage, lock_text
from pytest_kvmlab.spec.manifest import DISKS, INITRD, KERNEL, LOCK, TREE, Manifest
from pytest_kvmlab.spec.quantity import GIB
from pytest_kvmlab.spec.recipe import DebianKeys, Recipe, Suite

_SIZE = 4 * GIB
_CMDLINE = f"root=LABEL={ROOT_LABEL} ro console=tty0 console=ttyS0"


@dataclass(frozen=True)
class _Build:
    """One image of this kind, its inputs known.

    Attributes:
        recipe: the recipe.
        keys: what it says.
        suite: the release of Debian that its packages are of.
        parent: the image that it grows from, locked; None for a new system.
        packages: what is installed on top of that.
        boots: the release of the kernel that the disk boots; None: the one installed last.
        store: where packages and images are.
        shell_on_failure: give the terminal a shell in the tree if `setup.sh` fails.
        progress: told what is being done.
    """

    recipe: Recipe
    keys: DebianKeys
    suite: str
    parent: Image | None
    packages: Sequence[LockedPackage]
    store: Store
    shell_on_failure: bool
    progress: Progress
    boots: str | None = None

    @property
    def identity(self) -> str:
        """Hexadecimal digest of everything that its bytes depend on."""
        origin = self.parent.manifest.identity if self.parent else self.suite
        return identity(self.recipe, origin, lock_text(self.packages))

    def make(self, folder: Path) -> Manifest:
        """Fill the folder `image` in an empty folder."""
        image = folder / "image"
        self._make_tree(image / TREE, folder)
        (image / LOCK).write_text(lock_text(self.packages), encoding="utf-8")
        system = kernel_of(image / TREE)
        (image / KERNEL).write_bytes(kernel.uncompressed(system.image))
        (image / INITRD).write_bytes(system.initrd)
        cmdline = self._cmdline()
        make_disk(image / TREE, image / DISKS["qcow2"], self._size(), cmdline, folder, progress=self.progress)
        return self._manifest(image, release=system.release, cmdline=cmdline)

    def _make_tree(self, tree: Path, folder: Path) -> None:
        work = folder / "work"
        work.mkdir()
        debian.fetch(
            self.packages, self.store.packages, suite=self.suite, scratch=work, progress=self.progress
        )
        build_tree(
            self.recipe.folder,
            self.packages,
            asked=self.keys.packages,
            pool=self.store.packages,
            target=tree,
            folder=work,
            parent=self.parent.file(TREE) if self.parent else None,
            boots=self.boots,
            shell_on_failure=self.shell_on_failure,
            progress=self.progress,
        )

    def _size(self) -> int:
        if self.keys.size or self.parent is None or self.parent.disk is None:
            return self.keys.size or _SIZE
        return qemu_img.info(self.parent.disk, "qcow2").virtual_size

    def _cmdline(self) -> str:
        inherited = self.parent.manifest.cmdline if self.parent else None
        return self.keys.cmdline or inherited or _CMDLINE

    def _manifest(self, image: Path, *, release: str, cmdline: str) -> Manifest:
        below = self.parent.manifest if self.parent else None
        own = {package.name: package.version for package in self.packages}
        return manifest(
            self.recipe,
            self.identity,
            image,
            suite=self.suite,
            parent=below.identity if below else None,
            packages={**(below.packages if below else {}), **own},
            kernel_version=release,
            cmdline=cmdline,
            disk_boots=True,
            guest={**(below.guest if below else {}), **self.recipe.guest},
        )


def debian_blueprint(
    recipe: Recipe,
    keys: DebianKeys,
    parent: Image | None,
    store: Store,
    *,
    locked: Sequence[LockedPackage] | None,
    shell_on_failure: bool,
    progress: Progress,
) -> Blueprint:
    """Find out what an image would be made of now.

    Args:
        recipe: the recipe.
        keys: what it says.
        parent: the image that `from` names, locked until the new one is in its place; None for a suite.
        store: where packages and images are.
        locked: the exact packages; None asks apt for the newest.
        shell_on_failure: give the terminal a shell in the tree if `setup.sh` fails.
        progress: told what is being done.

    Raises:
        ConfigError: the parent is no image of kind `debian`, or the lock lacks a package.
        ImageError: apt does not know the suite, or a package.
    """
    suite = keys.origin.codename if isinstance(keys.origin, Suite) else _suite_of(parent, recipe)
    if locked is None:
        progress("asking apt for package versions", None)
        status = installed(_tree(parent)) if parent else ""
        locked = debian.resolve_system(keys.packages, suite=suite, installed=status)
    _refuse_stale(locked, keys.packages, parent, recipe)
    build = _Build(recipe, keys, suite, parent, locked, store, shell_on_failure, progress)
    return Blueprint(build.identity, build.make)


def with_kernel_blueprint(
    recipe: Recipe,
    keys: DebianKeys,
    parent: Image,
    store: Store,
    *,
    release: str,
    locked: Sequence[LockedPackage],
    progress: Progress,
) -> Blueprint:
    """Find out what an image with another kernel would be made of.

    Args:
        recipe: names the new image; its folder is empty.
        keys: ask for the kernel's package.
        parent: the image that gets the kernel, locked until the new one is in its place.
        store: where packages and images are.
        release: the kernel that guests boot.
        locked: its package and what that needs, which the store has.
        progress: told what is being done.

    Raises:
        ConfigError: the parent is no image of kind `debian`.
    """
    suite = _suite_of(parent, recipe)
    build = _Build(recipe, keys, suite, parent, locked, store, False, progress, release)
    return Blueprint(build.identity, build.make)


def _refuse_stale(
    locked: Sequence[LockedPackage], asked: Sequence[str], parent: Image | None, recipe: Recipe
) -> None:
    """A package that was added to a recipe after its lock was written would be left out without a word."""
    missing = set(asked) - {package.name for package in locked}
    if missing and parent:
        missing -= set(re.findall(r"^Package: (\S+)$", installed(_tree(parent)), re.MULTILINE))
    if missing:
        raise ConfigError(
            f"the lock of '{recipe.name}' lacks packages that it asks for: {', '.join(sorted(missing))}",
            "build it without the lock, then write that anew: kvmlab image lock; of a package that several "
            "provide, name the one that is meant",
            looked_at=[recipe.folder],
        )


def _suite_of(parent: Image | None, recipe: Recipe) -> str:
    if parent is None or parent.manifest.suite is None:
        name = parent.name if parent else "nothing"
        raise ConfigError(
            f"image '{recipe.name}' cannot grow from '{name}', which was not built from Debian's packages",
            'use kind = "layer": its setup.sh runs in a guest of any image',
        )
    return parent.manifest.suite


def _tree(parent: Image) -> Path:
    tree = parent.file(TREE)
    if tree is None:
        raise ImageError(f"image '{parent.name}' has no tree to grow from", "build it again")
    return tree
