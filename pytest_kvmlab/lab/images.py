"""From the name of an image to what a guest boots from."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.base_image import BaseImage, StartsGuests, base_image
from pytest_kvmlab.lab.build import ensure
from pytest_kvmlab.lab.copies import save_disk
from pytest_kvmlab.lab.recipes import recipes
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.plan.guest import BootSource, DiskFile
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.names import nearest


class Images:
    """The images that a run can use.

    Args:
        store: where built images are.
        candidates: files to use in place of the disks of named images.
        progress: told when an image has to be built.

    Raises:
        ConfigError: a candidate is for an image that nobody knows.
    """

    def __init__(self, store: Store, candidates: Mapping[str, Path], progress: Progress) -> None:
        self._store = store
        self._candidates = candidates
        self._progress = progress
        for name in candidates:
            _check_known(name, store)

    @contextmanager
    def use(self, name: str, *, guests: StartsGuests | None = None) -> Iterator[BaseImage]:
        """Get an image that nobody removes meanwhile, built now if need be.

        Args:
            name: the image.
            guests: starts guests, where building may need them.

        Raises:
            ImageError: there is no such image, it cannot be built, or its candidate is no sound disk.
        """
        image = ensure(name, self._store, guests=guests, progress=self._progress)
        with image.lock_shared():
            yield self._with_candidate(image)

    def save(self, disk: Path, name: str, *, replace: bool = False) -> Image:
        """Make an image of the disk of a guest that is off: `pytest_kvmlab.lab.copies.save_disk`."""
        return save_disk(disk, name, self._store, replace=replace, progress=self._progress)

    def _with_candidate(self, image: Image) -> BaseImage:
        base, candidate = base_image(image), self._candidates.get(image.name)
        if candidate is None:
            return base
        disk = DiskFile(
            candidate.absolute(), qemu_img.inspect_untrusted(candidate), device=candidate.is_block_device()
        )
        # A disk that boots by itself brings its own kernel: the image's would not find its modules there.
        boot = BootSource(disk) if image.manifest.disk_boots else replace(base.boot, disk=disk)
        return replace(base, identity=str(candidate), boot=boot)


def _check_known(name: str, store: Store) -> None:
    """A candidate for a misspelt name would leave the tests on the old image without a word."""
    known = {*recipes(), *store.names()}
    if name not in known:
        raise ConfigError(
            f"--kvm-image: there is no image '{name}' to use a file in place of{nearest(name, known)}",
            f"known images: {', '.join(sorted(known))}",
        )
