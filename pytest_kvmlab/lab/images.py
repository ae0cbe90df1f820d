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
from pytest_kvmlab.lab.kernel_upgrade import KernelFiles
from pytest_kvmlab.lab.kernels import Kernel, fetch_kernel, find_kernel, new_kernel
from pytest_kvmlab.lab.own_kernel import adopt
from pytest_kvmlab.lab.recipes import recipes
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.plan.guest import BootSource, DiskFile
from pytest_kvmlab.progress import Progress
from pytest_kvmlab.spec.kernel import ITS_OWN, image_with, split_image
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
        self._kernels: dict[str, str] = {}
        self._own: dict[str, Kernel] = {}
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
        self._refuse_candidate_with_kernel(name)
        image = ensure(
            self._decided(name, guests),
            self._store,
            guests=guests,
            kernels=tuple(self._own.values()),
            progress=self._progress,
        )
        with image.lock_shared():
            yield self._with_candidate(image)

    def kernel_release(self, name: str, *, guests: StartsGuests | None = None) -> str:
        """Say which kernel guests of an image boot; the image itself is built only if it has its own.

        Args:
            name: the image, or the image with another kernel.
            guests: starts guests, where building may need them.

        Returns:
            The kernel's release, as in `uname -r`.

        Raises:
            ImageError: there is no such image or kernel.
            ConfigError: nobody knows: the image is somebody's disk, or a file stands in for it.
        """
        base, kernel = split_image(self._decided(name, guests))
        if kernel != ITS_OWN:
            return self._own[kernel].release if kernel in self._own else kernel
        version = ensure(base, self._store, guests=guests, progress=self._progress).manifest.kernel_version
        if version is None or base in self._candidates:
            raise ConfigError(
                f"nobody knows the kernel of '{base}' before it boots, so a test cannot be chosen by it",
                "ask the guest: guest.succeed('uname -r')",
            )
        return version

    def own_kernel(self, file: Path) -> str:
        """Take a kernel of somebody's into the store.

        Args:
            file: a `.deb` package, or a `vmlinuz` with `lib/modules/RELEASE` beside it or one folder above.

        Returns:
            What the names of images with this kernel have in place of a version.

        Raises:
            ImageError: it is no kernel that a guest could run.
        """
        kernel = adopt(file, self._store, self._progress)
        self._own[kernel.name] = kernel
        return kernel.name

    def kernel_packages(self, wish: str, suite: str, status: str) -> KernelFiles:
        """Have the packages that a running system needs for another kernel.

        Args:
            wish: a version, the name of a package, or the path of a kernel of somebody's own, with a slash.
            suite: the codename of its release of Debian.
            status: its `/var/lib/dpkg/status`.

        Returns:
            The kernel's release, and the file of each package.

        Raises:
            ImageError: there is no such kernel, or it cannot be fetched.
            ConfigError: it is of another architecture.
        """
        store = self._store
        if "/" in wish:
            kernel = adopt(Path(wish).expanduser(), store, self._progress)
        else:
            kernel = new_kernel(find_kernel(wish, suite, store), suite, status, store)
        with store.building("kernel-packages", waiting=lambda: None) as scratch:
            files = fetch_kernel(kernel, suite, store, scratch=scratch, progress=self._progress)
        return KernelFiles(kernel.release, files)

    def _decided(self, name: str, guests: StartsGuests | None) -> str:
        """The name with the release of the kernel that it asks for, which stays the same for a run."""
        base, wish = split_image(name)
        if wish != ITS_OWN and wish not in self._own and name not in self._kernels:
            image = ensure(base, self._store, guests=guests, progress=self._progress)
            self._kernels[name] = image_with(base, find_kernel(wish, image.manifest.suite, self._store))
        return self._kernels.get(name, name)

    def _refuse_candidate_with_kernel(self, name: str) -> None:
        base, kernel = split_image(name)
        if kernel != ITS_OWN and base in self._candidates:
            raise ConfigError(
                f"--kvm-image: the file in place of '{base}' has its own kernel, not {kernel}",
                f"leave out --kvm-kernel, or the file: {self._candidates[base]}",
            )

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
