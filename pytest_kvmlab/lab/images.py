"""From the name of an image to the files that a guest boots from."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_kvmlab.drivers import qemu_img
from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.build import Progress, ensure, recipes
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.plan.guest import BootSource, DiskFile
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.names import nearest
from pytest_kvmlab.spec.validation import validate


@dataclass(frozen=True)
class BaseImage:
    """What guests of one image have in common; none of its files is ever written to.

    Attributes:
        identity: the SHA-256 of the stored image, or the path of the file that is used in place of its disk.
        keys: what the image says about its guests.
        boot: its kernel, and its disk, of which guests get overlays.
        kernel_version: of that kernel.
    """

    identity: str
    keys: GuestKeys
    boot: BootSource
    kernel_version: str


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
    def use(self, name: str) -> Iterator[BaseImage]:
        """Get an image that nobody removes meanwhile, built now if need be.

        Args:
            name: the image.

        Raises:
            ImageError: there is no such image, it cannot be built, or its candidate is no sound disk.
        """
        image = ensure(name, self._store, progress=self._progress)
        with image.lock_shared():
            yield self._with_candidate(image)

    def _with_candidate(self, image: Image) -> BaseImage:
        keys = validate(GuestKeys, image.guest, source=f"image '{image.name}'")
        candidate = self._candidates.get(image.name)
        if candidate is None:
            identity, disk = image.sha256, DiskFile(image.disk, image.disk_format)
        else:
            identity = str(candidate)
            disk = DiskFile(candidate.absolute(), qemu_img.inspect_untrusted(candidate))
        boot = BootSource(disk, image.kernel, image.initrd, image.cmdline)
        return BaseImage(identity, keys, boot, image.kernel_version)


def _check_known(name: str, store: Store) -> None:
    """A candidate for a misspelt name would leave the tests on the old image without a word."""
    known = {*recipes(), *(image.name for image in store.images())}
    if name not in known:
        raise ConfigError(
            f"--kvm-image: there is no image '{name}' to use a file in place of{nearest(name, known)}",
            f"known images: {', '.join(sorted(known))}",
        )
