"""Kernels that an image does not have: which are at hand, and which no guest could run."""

import re
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from pytest_kvmlab.drivers import debian, kernel
from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab.build import ensure
from pytest_kvmlab.lab.images import Images
from pytest_kvmlab.lab.kernel_image import kernel_blueprint
from pytest_kvmlab.lab.kernels import Kernel, find_kernel, kernels_at_hand, new_kernel
from pytest_kvmlab.lab.own_kernel import adopt
from pytest_kvmlab.lab.store import Image, Store
from pytest_kvmlab.spec.manifest import LOCK, Manifest

SUITE = "bookworm"
VIRTIO = ("virtio_pci", "virtio_blk", "virtio_net")
OWN = "6.13.0-rc1-mine"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty one."""
    (tmp_path / "store").mkdir()
    return Store(tmp_path / "store")


def quiet(_step: object, _share: float | None) -> None:
    pass


def own_kernel(
    folder: Path,
    *,
    release: str = OWN,
    modules_of: str = OWN,
    built_in: Sequence[str] = VIRTIO,
    load_flags: int = 0x7F,
) -> Path:
    """A kernel as far as anybody looks at it before it boots."""
    image = bytearray(0x400)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x20F)
    struct.pack_into("<H", image, 0x20E, 0x100)
    struct.pack_into("<H", image, 0x236, load_flags)
    image[0x300 : 0x300 + len(release)] = release.encode()
    modules = folder / "lib" / "modules" / modules_of
    modules.mkdir(parents=True)
    (modules / "modules.builtin").write_text("".join(f"kernel/drivers/{name}.ko\n" for name in built_in))
    vmlinuz = folder / "boot" / "vmlinuz"
    vmlinuz.parent.mkdir()
    vmlinuz.write_bytes(bytes(image))
    return vmlinuz


def test_what_apt_offers_is_in_order_and_has_a_kernel_each(store: Store) -> None:
    found = list(kernels_at_hand(SUITE, store))
    assert found
    assert not [release for release in found if release.endswith(("-dbg", "-unsigned"))]
    numbered = [release for release in found if release.startswith("6.1.0-") and release.endswith("-amd64")]
    assert numbered == sorted(numbered, key=lambda release: int(release.split("-")[1]))


def test_a_metapackage_is_the_kernel_that_it_asks_for(store: Store) -> None:
    assert find_kernel("linux-image-amd64", SUITE, store) in kernels_at_hand(SUITE, store)
    assert find_kernel("linux-image-cloud-amd64", SUITE, store).endswith("-cloud-amd64")


def test_a_kernel_that_does_not_exist_is_told_with_the_nearest(store: Store) -> None:
    with pytest.raises(ImageError, match=r"no kernel 'linux-image-6\.1\.0-1-amd64' for Debian .*nearest: 6"):
        find_kernel("linux-image-6.1.0-1-amd64", SUITE, store)


@pytest.mark.parametrize("wish", ["linux-image-6.1.0-49-arm64", "6.1.0-49-arm64", "linux-image-686-pae"])
def test_a_kernel_of_another_architecture_is_refused(wish: str, store: Store) -> None:
    with pytest.raises(ConfigError, match="of another architecture"):
        find_kernel(wish, SUITE, store)


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with `micro`."""
    store = Store(tmp_path_factory.mktemp("store"))
    ensure("micro", store, progress=quiet)
    return store


@pytest.fixture
def no_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apt has no kernel any more."""
    monkeypatch.setattr(debian, "kernels", lambda _suite: {})
    monkeypatch.setattr(debian, "resolve", _has_nothing)


def _has_nothing(_names: Sequence[str]) -> None:
    raise ImageError("apt offers no file")


@pytest.mark.usefixtures("no_apt")
def test_a_kernel_that_apt_has_no_more_is_taken_from_the_store(stocked: Store) -> None:
    image = stocked.find("micro")
    assert image
    release = image.manifest.kernel_version
    assert release
    assert find_kernel(release, None, stocked) == release
    (package,) = new_kernel(release, None, "", stocked).packages
    assert package.sha256 in (image.folder / LOCK).read_text()


def test_an_image_with_another_kernel_is_built_once(stocked: Store, request: pytest.FixtureRequest) -> None:
    wish = "linux-image-cloud-amd64"
    first = ensure(f"micro+{wish}", stocked, progress=quiet)
    release = first.manifest.kernel_version
    assert first.name == f"micro+{release}"
    request.getfixturevalue("no_apt")
    steps: list[object] = []
    again = ensure(f"micro+{release}", stocked, progress=lambda step, _: steps.append(step))
    assert (again.folder, steps) == (first.folder, [])


def test_the_kernel_that_an_image_has_makes_no_other_image(stocked: Store) -> None:
    image = stocked.find("micro")
    assert image
    assert ensure(f"micro+{image.manifest.kernel_version}", stocked, progress=quiet) == image


def test_a_file_in_place_of_an_image_keeps_its_own_kernel(store: Store, tmp_path: Path) -> None:
    images = Images(store, {"micro": tmp_path / "mine.qcow2"}, quiet)
    with (
        pytest.raises(ConfigError, match=r"the file in place of 'micro' has its own kernel, not 6\.12"),
        images.use("micro+6.12"),
    ):
        pass


@pytest.mark.parametrize("kind", ["import", "installer", "layer"])
def test_a_disk_whose_making_is_not_known_keeps_its_kernel(kind: str, store: Store, tmp_path: Path) -> None:
    files = {"disk.qcow2": {"sha256": "0" * 64, "size": 1}}
    manifest = Manifest.model_validate({"name": "shop", "kind": kind, "identity": "0" * 64, "files": files})
    image, other = Image(tmp_path, manifest, "0" * 64), Kernel("6.12", "6.12.1-amd64", ())
    with pytest.raises(
        ConfigError, match=f"'shop' of kind '{kind}' cannot be given another kernel"
    ) as refused:
        kernel_blueprint(image, other, store, tmp_path, progress=quiet)
    assert "guest.upgrade_kernel" in refused.value.hint


def test_ones_own_kernel_becomes_a_package_of_equal_bytes(store: Store, tmp_path: Path) -> None:
    first = adopt(own_kernel(tmp_path / "a"), store, quiet)
    second = adopt(own_kernel(tmp_path / "b"), store, quiet)
    assert first == second
    assert first.release == OWN
    assert re.fullmatch(rf"{OWN}-own-[0-9a-f]{{8}}", first.name)
    assert debian.pooled(store.packages, first.packages[0]).exists()


def test_a_kernel_that_is_built_again_has_another_name(store: Store, tmp_path: Path) -> None:
    first = adopt(own_kernel(tmp_path / "a"), store, quiet)
    again = adopt(own_kernel(tmp_path / "b", built_in=[*VIRTIO, "ext4"]), store, quiet)
    assert (again.release, again.name != first.name) == (first.release, True)


def test_a_package_of_ones_own_is_taken_as_it_is(store: Store, tmp_path: Path) -> None:
    made = adopt(own_kernel(tmp_path / "a"), store, quiet)
    package = tmp_path / "linux-image.deb"
    package.write_bytes(debian.pooled(store.packages, made.packages[0]).read_bytes())
    assert adopt(package, store, quiet) == made


def test_a_32_bit_kernel_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=f"{OWN} is of another architecture: it is a 32-bit one"):
        adopt(own_kernel(tmp_path, load_flags=0x7E), store, quiet)


def test_a_kernel_without_virtio_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="has no virtio_blk, virtio_net: its guests would see no disk"):
        adopt(own_kernel(tmp_path, built_in=["virtio_pci"]), store, quiet)


def test_modules_of_another_version_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=rf"no modules of the kernel {OWN}, only of 6\.12\.0-mine"):
        adopt(own_kernel(tmp_path, modules_of="6.12.0-mine"), store, quiet)


def test_a_kernel_that_is_another_one_than_its_package_says_is_refused(tmp_path: Path) -> None:
    image = own_kernel(tmp_path)
    with pytest.raises(ImageError, match=f"the kernel 6.12.0 says of itself that it is {OWN}"):
        kernel.require_guests_can_run_it(image.read_bytes(), tmp_path / "lib/modules" / OWN, "6.12.0")


def test_a_package_of_another_architecture_is_refused(store: Store, tmp_path: Path) -> None:
    control = f"Package: linux-image-{OWN}\nVersion: 1\nArchitecture: arm64\nMaintainer: x\nDescription: x\n"
    (tmp_path / "root" / "DEBIAN").mkdir(parents=True)
    (tmp_path / "root" / "DEBIAN" / "control").write_text(control)
    debian.pack(tmp_path / "root", tmp_path / "it.deb")
    with pytest.raises(ImageError, match=f"{OWN} is of another architecture: arm64"):
        adopt(tmp_path / "it.deb", store, quiet)


@pytest.mark.parametrize("content", [b"", b"ARM\x64" * 200, bytes(0x400)])
def test_what_is_no_kernel_is_refused(content: bytes, store: Store, tmp_path: Path) -> None:
    (tmp_path / "vmlinuz").write_bytes(content)
    with pytest.raises(ImageError, match="no x86 Linux boot image"):
        adopt(tmp_path / "vmlinuz", store, quiet)


def test_a_kernel_that_no_package_can_be_called_after_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no package can have the name of the kernel 6\.8\.0-Mine"):
        adopt(own_kernel(tmp_path, release="6.8.0-Mine", modules_of="6.8.0-Mine"), store, quiet)


def test_a_file_that_is_not_there_is_told(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no kernel"):
        adopt(tmp_path / "vmlinuz", store, quiet)
