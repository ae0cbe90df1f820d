"""Which guest a test asks for: marks merge, the nearest winning, and the lab says the rest."""

from pathlib import Path

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.plugin.asked import asked_guest
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.options import resolve_options
from pytest_kvmlab.spec.quantity import MIB

pytest_plugins = ["pytester"]

MARKS = """
import pytest
pytestmark = pytest.mark.kvm(image="module", memory="1MiB", vcpus=1, video="vga")

@pytest.mark.kvm(memory="2MiB", vcpus=2, sound="ich9")
class TestBase:
    @pytest.mark.kvm(vcpus=3)
    def test_function(self): ...

    @pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.kvm(vcpus=4))])
    @pytest.mark.kvm(vcpus=3, machine="pc")
    def test_parameter(self, n): ...

@pytest.mark.kvm(memory="5MiB")
class TestDerived(TestBase): ...
"""

ONE = '[guest.web]\nimage = "debian"\nmemory = "1GiB"\n'
TWO = '[guest.web]\nimage = "debian"\n[guest.db]\nimage = "suse"\n'


def asked(pytester: pytest.Pytester, text: str, **options: object) -> dict[str, tuple[str, GuestKeys]]:
    """What the tests of a file ask for, by their names."""
    items, _ = pytester.inline_genitems(str(write(pytester, "tests/test_it.py", text)))
    decided = resolve_options(options, {}, {})
    found = {item.nodeid.partition("::")[2]: asked_guest(item, decided) for item in items}
    return {test: (guest.name, guest.keys) for test, guest in found.items()}


def asked_once(pytester: pytest.Pytester, mark: str, **options: object) -> tuple[str, GuestKeys]:
    text = f"import pytest\n@pytest.mark.{mark}\ndef test_it(): ...\n"
    return asked(pytester, text, **options)["test_it"]


def write(pytester: pytest.Pytester, name: str, text: str) -> Path:
    path = pytester.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_nearest_mark_wins_key_by_key(pytester: pytest.Pytester) -> None:
    _, keys = asked(pytester, MARKS)["TestBase::test_function"]
    assert (keys.image, keys.video) == ("module", "vga")
    assert (keys.memory, keys.sound) == (2 * MIB, "ich9")
    assert keys.vcpus == 3


def test_a_parameters_mark_is_nearer_than_its_functions(pytester: pytest.Pytester) -> None:
    _, keys = asked(pytester, MARKS)["TestBase::test_parameter[1]"]
    assert (keys.vcpus, keys.machine) == (4, "pc")


def test_a_classs_mark_is_nearer_than_its_base_classs(pytester: pytest.Pytester) -> None:
    _, keys = asked(pytester, MARKS)["TestDerived::test_function"]
    assert (keys.memory, keys.sound) == (5 * MIB, "ich9")


def test_without_a_mark_the_labs_only_guest_is_meant(pytester: pytest.Pytester) -> None:
    write(pytester, "one.lab.toml", ONE)
    name, keys = asked(pytester, "def test_it(): ...\n")["test_it"]
    assert (name, keys.image, keys.memory) == ("web", "debian", 1024 * MIB)


def test_a_mark_wins_over_the_lab(pytester: pytest.Pytester) -> None:
    write(pytester, "one.lab.toml", ONE)
    name, keys = asked_once(pytester, "kvm(memory='2MiB')")
    assert (name, keys.image, keys.memory) == ("web", "debian", 2 * MIB)


def test_a_mark_with_an_image_needs_no_lab(pytester: pytest.Pytester) -> None:
    write(pytester, "one.lab.toml", ONE)
    name, keys = asked_once(pytester, "kvm(image='suse')")
    assert (name, keys.image, keys.memory) == ("guest", "suse", None)


def test_the_nearest_lab_file_is_the_tests(pytester: pytest.Pytester) -> None:
    write(pytester, "two.lab.toml", TWO)
    write(pytester, "tests/one.lab.toml", ONE)
    assert asked(pytester, "def test_it(): ...\n")["test_it"][0] == "web"


def test_a_guest_of_a_lab_is_chosen_by_name(pytester: pytest.Pytester) -> None:
    write(pytester, "two.lab.toml", TWO)
    name, keys = asked_once(pytester, "kvm(guest='db')")
    assert (name, keys.image) == ("db", "suse")


def test_a_lab_with_several_guests_and_no_choice_is_ambiguous(pytester: pytest.Pytester) -> None:
    write(pytester, "two.lab.toml", TWO)
    with pytest.raises(ConfigError, match=r"two\.lab\.toml has several guests: web, db"):
        asked(pytester, "def test_it(): ...\n")


def test_two_lab_files_in_one_folder_are_ambiguous(pytester: pytest.Pytester) -> None:
    write(pytester, "one.lab.toml", ONE)
    write(pytester, "two.lab.toml", TWO)
    with pytest.raises(ConfigError, match="more than one lab file"):
        asked(pytester, "def test_it(): ...\n")


def test_the_option_names_the_lab_of_tests_that_name_none(pytester: pytest.Pytester) -> None:
    write(pytester, "one.lab.toml", ONE)
    path = write(pytester, "two.lab.toml", TWO)
    name, keys = asked_once(pytester, "kvm(guest='db')", lab_file=str(path))
    assert (name, keys.image) == ("db", "suse")


def test_the_option_does_not_go_before_a_lab_file_of_the_tests_own(pytester: pytest.Pytester) -> None:
    write(pytester, "tests/one.lab.toml", ONE)
    path = write(pytester, "two.lab.toml", TWO)
    assert asked(pytester, "def test_it(): ...\n", lab_file=str(path))["test_it"][0] == "web"


def test_a_mark_names_a_shipped_lab(pytester: pytest.Pytester) -> None:
    write(pytester, "one.lab.toml", ONE)
    assert asked_once(pytester, "kvm(lab='demo')")[0] == "micro"


def test_a_labs_path_in_a_mark_is_seen_from_the_tests_folder(pytester: pytest.Pytester) -> None:
    write(pytester, "tests/labs.d/one.lab.toml", ONE)
    assert asked_once(pytester, "kvm(lab='labs.d/one.lab.toml')")[0] == "web"


def test_a_guest_without_a_lab_is_refused(pytester: pytest.Pytester) -> None:
    with pytest.raises(ConfigError, match="guest 'web' is of no lab"):
        asked_once(pytester, "kvm(guest='web')")
