from pathlib import Path

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.guest import merge
from pytest_kvmlab.spec.labfile import LabSpec, load_lab
from pytest_kvmlab.spec.marker import KvmMark, WrittenMark, merge_marks
from pytest_kvmlab.spec.selection import select_guest


def mark(where: str = "test_wiki.py::test_login", *args: object, **kwargs: object) -> WrittenMark:
    return WrittenMark(where, Path("/suite"), kwargs, args)


def test_the_nearest_mark_wins_key_by_key() -> None:
    merged = merge_marks([mark(vcpus=2), mark(vcpus=4, memory="1GiB"), mark(image="micro", memory="64MiB")])
    assert (merged.vcpus, merged.memory, merged.image) == (2, 2**30, "micro")


def test_a_mark_chooses_a_guest_of_a_lab() -> None:
    merged = merge_marks([mark(guest="web"), mark(lab="wiki")])
    assert (merged.lab, merged.guest) == ("wiki", "web")


def test_no_marks_say_nothing() -> None:
    assert merge_marks([]) == KvmMark()


def test_the_choice_of_a_lab_is_no_key_of_a_guest() -> None:
    assert merge(merge_marks([mark(lab="wiki", vcpus=2)])).model_fields_set == {"vcpus"}


def test_paths_are_seen_from_the_test_file() -> None:
    assert merge_marks([mark(kernel="vmlinuz")]).kernel == Path("/suite/vmlinuz")


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (mark(memroy="1GiB"), "memroy: unknown key (did you mean 'memory'?)"),
        (mark(memory=512), "memory: write a size with its unit"),
        (mark(after=["db"]), "after: unknown key"),
        (WrittenMark("test_wiki.py::test_login", Path(), {}, ("micro",)), "takes keyword arguments only"),
    ],
)
def test_a_wrong_mark_is_named_with_its_place(written: WrittenMark, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        merge_marks([mark(image="micro"), written])
    assert str(caught.value).startswith(f"mark 'kvm' of test_wiki.py::test_login: {said}")


def lab(folder: Path) -> LabSpec:
    file = folder / "wiki.lab.toml"
    file.write_text("""
        [network.campus]
        mode = "nat"
        subnet = "10.77.0.0/24"
        [guest.web]
        networks = ["campus"]
        [guest.db]
        networks = [{ name = "campus", address = "10.77.0.20" }]
    """)
    return load_lab(file)


def test_a_mark_puts_its_guest_into_other_networks_of_the_lab(tmp_path: Path) -> None:
    asked = merge_marks([mark(guest="web", networks=[{"name": "campus", "address": "10.77.0.10"}])])
    _, keys = select_guest(asked, lab(tmp_path), where="test_login")
    assert [str(card.address) for card in keys.networks or ()] == ["10.77.0.10"]


@pytest.mark.parametrize(
    ("networks", "said"),
    [
        (["campsu"], "no network is called 'campsu' (did you mean 'campus'?)"),
        ([{"name": "campus", "address": "10.77.0.20"}], "have one address, 10.77.0.20"),
    ],
)
def test_a_mark_that_conflicts_with_its_lab_is_refused(
    tmp_path: Path, networks: list[object], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        select_guest(merge_marks([mark(guest="web", networks=networks)]), lab(tmp_path), where="test_login")
    assert str(caught.value).startswith("test_login: guest.web.networks[0]")
    assert said in str(caught.value)
