"""Which kernel a guest boots: what may be written, where, and which one is meant."""

from pathlib import Path

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.kernel import (
    ITS_OWN,
    architecture_of,
    best_kernel,
    fits,
    image_with,
    is_range,
    kernel_or_file,
    parse_kernel,
    release_of,
    split_image,
)
from pytest_kvmlab.spec.labfile import LabSpec, load_lab
from pytest_kvmlab.spec.marker import KvmMark, WrittenMark, merge_marks
from pytest_kvmlab.spec.options import resolve_options
from pytest_kvmlab.spec.resolved import resolve_guest
from pytest_kvmlab.spec.selection import refuse_guest_keys, with_kernel, with_kernels

OFFERS = {
    "6.1.0-49-amd64": "6.1.174-1",
    "6.1.0-49-cloud-amd64": "6.1.174-1",
    "6.1.0-56-amd64": "6.1.192-2",
    "6.1.0-56-rt-amd64": "6.1.192-2",
    "6.12.9+deb12-amd64": "6.12.9-1~deb12u1",
    "6.12.117+deb12-amd64": "6.12.117-1~deb12u1",
    "6.13.0-rc1-amd64": "0",
}


def mark(**keys: object) -> KvmMark:
    return merge_marks([WrittenMark("test_it", Path("/suite"), keys)])


def best(wish: str) -> str | None:
    return best_kernel(wish, OFFERS.items(), architecture="amd64")


@pytest.mark.parametrize(
    ("wish", "release"),
    [
        ("6.12", "6.12.117+deb12-amd64"),
        ("6.12.9", "6.12.9+deb12-amd64"),
        ("6.1", "6.1.0-56-amd64"),
        ("6.1.0-49", "6.1.0-49-amd64"),
        ("6.1.0-49-amd64", "6.1.0-49-amd64"),
        ("6.1.174-1", "6.1.0-49-amd64"),
        ("6.1-cloud", "6.1.0-49-cloud-amd64"),
        ("6.1.0-49-cloud-amd64", "6.1.0-49-cloud-amd64"),
        ("6.1-rt", "6.1.0-56-rt-amd64"),
        ("6.12.117+deb12-amd64", "6.12.117+deb12-amd64"),
        ("6.13.0", "6.13.0-rc1-amd64"),
    ],
)
def test_a_version_is_the_newest_kernel_that_has_its_numbers(wish: str, release: str) -> None:
    assert best(wish) == release


@pytest.mark.parametrize("wish", ["6.1.0-4", "6.2", "6.12-cloud", "6.1.0-56-cloud", "linux-image-amd64"])
def test_a_version_that_no_kernel_has_is_none(wish: str) -> None:
    assert best(wish) is None


@pytest.mark.parametrize(
    ("bounds", "release", "it_fits"),
    [
        (">=6.12", "6.12.117+deb12-amd64", True),
        (">=6.12", "6.1.0-56-amd64", False),
        ("<=6.12", "6.12.117+deb12-amd64", True),
        (">6.12", "6.12.117+deb12-amd64", False),
        ("==6.1", "6.1.0-56-amd64", True),
        ("==6.1", "6.12.117+deb12-amd64", False),
        ("<6.1.0-50", "6.1.0-49-amd64", True),
        (">=6.1, <6.12", "6.1.0-49-amd64", True),
        (">=6.1, <6.12", "6.12.117+deb12-amd64", False),
    ],
)
def test_a_range_counts_as_many_numbers_as_it_has(bounds: str, release: str, it_fits: bool) -> None:
    assert fits(bounds, release) is it_fits


@pytest.mark.parametrize("written", [">=", ">=six", "6.1, >=6.2", "~6.1", ">=6.1 <6.2", "=>6.1"])
def test_what_looks_like_a_range_and_is_none_is_refused_or_a_file(written: str) -> None:
    if written[0] in "<>=":
        with pytest.raises(ConfigError, match="kernel: should be one of >= > == < <="):
            mark(kernel=written)
    else:
        assert not is_range(kernel_or_file(written))


@pytest.mark.parametrize("written", ["image", "6.12", "6.1.0-49", "linux-image-amd64", "./my/vmlinuz"])
def test_what_names_a_kernel_is_accepted(written: str) -> None:
    assert resolve_options({"kernel": [written]}, {}, {}).kernel == (written,)


@pytest.mark.parametrize("written", ["vmlinuz", ">=6.12", "6.12;reboot", "linux-image-A", "--help", "6"])
def test_an_option_that_names_no_kernel_is_refused(written: str) -> None:
    with pytest.raises(ConfigError, match="--kvm-kernel: should be 'image', a version"):
        resolve_options({"kernel": [written]}, {}, {})


def test_a_kernel_that_is_asked_for_twice_counts_once() -> None:
    assert resolve_options({}, {"KVMLAB_KERNEL": "6.12\n6.1\n6.12"}, {}).kernel == ("6.12", "6.1")


def test_a_file_stays_a_file() -> None:
    assert mark(kernel="vmlinuz").kernel == Path("/suite/vmlinuz")
    assert with_kernel(GuestKeys(image="micro", kernel=Path("/my/vmlinuz")), "6.12").image == "micro"


def test_the_name_of_an_image_carries_the_kernel() -> None:
    assert image_with("debian-12", "6.12") == "debian-12+6.12"
    assert image_with("debian-12+6.12", "6.1") == "debian-12+6.1"
    assert image_with("debian-12+6.12", ITS_OWN) == "debian-12"
    assert split_image("debian-12+6.12.9+deb12-amd64") == ("debian-12", "6.12.9+deb12-amd64")


def test_an_image_of_somebodys_with_a_plus_in_its_name_has_its_own_kernel() -> None:
    assert split_image("c++") == ("c++", ITS_OWN)
    assert split_image("shop+beta") == ("shop+beta", ITS_OWN)


def test_a_mark_wins_over_the_option() -> None:
    assert with_kernel(mark(image="micro", kernel="6.1"), "6.12").image == "micro+6.1"
    assert with_kernel(mark(image="micro", kernel="image"), "6.12").image == "micro"
    assert with_kernel(mark(image="micro"), "6.12").image == "micro+6.12"
    assert with_kernel(mark(image="micro"), ITS_OWN).image == "micro"


def test_a_range_leaves_the_kernel_to_the_option() -> None:
    assert with_kernel(mark(image="micro", kernel=">=6.1"), "6.12").image == "micro+6.12"
    assert with_kernel(mark(image="micro", kernel=">=6.1")).image == "micro"


def test_a_name_that_would_be_too_long_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"with kernel 6\.12: an image's name"):
        with_kernel(GuestKeys(image="a" * 62), "6.12")


def lab(folder: Path, text: str) -> LabSpec:
    file = folder / "it.lab.toml"
    file.write_text(text)
    return load_lab(file)


def test_each_guest_of_a_lab_has_its_own_kernel_or_that_of_the_option(tmp_path: Path) -> None:
    text = '[guest.a]\nimage = "micro"\n[guest.b]\nimage = "micro"\nkernel = "6.1"\n'
    found = with_kernels(lab(tmp_path, text), "6.12")
    assert {name: keys.image for name, keys in found.guests.items()} == {"a": "micro+6.12", "b": "micro+6.1"}


def test_a_lab_file_names_one_kernel(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="range of versions, which is for the mark"):
        lab(tmp_path, '[guest.a]\nimage = "micro"\nkernel = ">=6.1"\n')


def test_a_test_of_a_whole_lab_may_say_which_kernels_it_is_for() -> None:
    refuse_guest_keys(mark(lab="wiki", kernel=">=6.12"), where="test_it")
    with pytest.raises(ConfigError, match="says kernel about one guest"):
        refuse_guest_keys(mark(lab="wiki", kernel="6.12"), where="test_it")


def test_an_image_cannot_say_to_be_another_one() -> None:
    with pytest.raises(ConfigError, match=r"its image says kernel = '6\.12'"):
        resolve_guest(GuestKeys(image="micro", kernel="6.12"), source="guest 'web'")


def test_packages_of_kernels_are_told_from_others() -> None:
    assert release_of("linux-image-6.1.0-49-cloud-amd64") == "6.1.0-49-cloud-amd64"
    for name in ("linux-image-amd64", "linux-image-6.12-amd64", "linux-image-6.1.0-49-amd64-dbg", "dash"):
        assert release_of(name) is None


def test_a_kernel_may_say_its_architecture() -> None:
    assert architecture_of("linux-image-6.1.0-49-cloud-arm64") == "arm64"
    assert architecture_of("6.1.0-49-amd64") == "amd64"
    assert architecture_of("6.1.0-49") is None


def test_what_is_no_text_names_no_kernel() -> None:
    with pytest.raises(ValueError, match="should be a text"):
        parse_kernel(6.12)
