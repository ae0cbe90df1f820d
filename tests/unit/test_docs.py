"""The reference is complete, and the examples of all pages are valid."""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer

from pytest_kvmlab import ControlRequest, UsbEndpoint, UsbInterface, VirtualUsbDevice, cli, errors, plugin
from pytest_kvmlab.drivers.command import CommandResult
from pytest_kvmlab.drivers.serial import SerialConsole
from pytest_kvmlab.drivers.ssh import SshChannel
from pytest_kvmlab.journal import Event
from pytest_kvmlab.lab.guest import Guest
from pytest_kvmlab.lab.guest_usb import GuestUsb
from pytest_kvmlab.plugin.facts import HostFacts
from pytest_kvmlab.spec.access import LoginKeys
from pytest_kvmlab.spec.application import LabApp
from pytest_kvmlab.spec.guest import DiskKeys, GuestKeys, Keys, NetworkKeys
from pytest_kvmlab.spec.labfile import LabGuest, load_lab
from pytest_kvmlab.spec.manifest import _FILES as FILES
from pytest_kvmlab.spec.manifest import Manifest
from pytest_kvmlab.spec.marker import KvmMark, WrittenMark, merge_marks
from pytest_kvmlab.spec.network import LabNetwork, NetworkMode
from pytest_kvmlab.spec.options import OPTIONS
from pytest_kvmlab.spec.recipe import RecipeKeys
from pytest_kvmlab.spec.resolved import resolve_guest
from pytest_kvmlab.spec.usb import UsbKeys

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
KEYS = (REFERENCE / "mark-and-lab-file.md").read_text()
LAB_FILE = (REFERENCE / "lab-file.md").read_text()

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def section(page: str, title: str) -> str:
    """What is below a heading, up to the next one."""
    return page.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(text: str) -> dict[str, str]:
    """The rows of a section's tables, by the name in their first cell."""
    return dict(re.findall(r"^\| `(\w+)`[^|]*\|(.*)\|$", text, re.MULTILINE))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def choices(annotation: Any) -> Iterator[str]:
    """The words that a key may be, wherever in its type they stand."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for inner in get_args(annotation):
            yield from choices(inner)


def own(model: type[Keys], base: type[Keys]) -> set[str]:
    return set(model.model_fields) - set(base.model_fields)


@pytest.mark.parametrize(
    ("page", "title", "keys"),
    [
        (KEYS, "Keys of a guest", set(GuestKeys.model_fields)),
        (KEYS, "A network card", set(NetworkKeys.model_fields)),
        (KEYS, "A disk", set(DiskKeys.model_fields)),
        (KEYS, "A USB device", set(UsbKeys.model_fields)),
        (KEYS, "Login", set(LoginKeys.model_fields)),
        (KEYS, "Only in a mark", own(KvmMark, GuestKeys)),
        (KEYS, "Only in a lab file", own(LabGuest, GuestKeys)),
        (LAB_FILE, "A network", set(LabNetwork.model_fields) | set(get_args(NetworkMode))),
        (LAB_FILE, "An application", set(LabApp.model_fields)),
    ],
)
def test_the_reference_has_exactly_the_keys_that_there_are(page: str, title: str, keys: set[str]) -> None:
    assert rows(section(page, title)).keys() == keys


@pytest.mark.parametrize(
    ("page", "title", "model"),
    [
        (KEYS, "Keys of a guest", GuestKeys),
        (KEYS, "A network card", NetworkKeys),
        (KEYS, "A disk", DiskKeys),
        (KEYS, "A USB device", UsbKeys),
        (KEYS, "Login", LoginKeys),
        (LAB_FILE, "A network", LabNetwork),
        (LAB_FILE, "An application", LabApp),
    ],
)
def test_the_reference_has_every_word_that_a_key_may_be(page: str, title: str, model: type[Keys]) -> None:
    described = rows(section(page, title))
    for key, field in model.model_fields.items():
        # A list of tables has a section of its own for the words in them.
        missing = {word for word in choices(field.annotation) if f"`{word}`" not in described[key]}
        assert not missing, f"{key}: {missing}"


@pytest.mark.parametrize("model", get_args(RecipeKeys), ids=lambda model: str(model.__name__))
def test_the_reference_has_exactly_the_keys_of_a_recipe(model: type[Keys]) -> None:
    (kind,) = choices(model.model_fields["kind"].annotation)
    keys = {field.alias or name for name, field in model.model_fields.items()}
    assert rows(section((REFERENCE / "recipes.md").read_text(), f"Kind `{kind}`")).keys() == keys


def test_the_reference_has_exactly_the_keys_and_files_of_a_manifest() -> None:
    page = section((REFERENCE / "store.md").read_text(), "The manifest")
    assert rows(page.split("| file |")[0]).keys() == set(Manifest.model_fields)
    assert [file for file in FILES if f"`{file}`" not in page] == []


@pytest.mark.parametrize("key", ["vcpus", "memory", "machine", "firmware", "clock", "video"])
def test_the_reference_has_the_default_of_a_key(key: str) -> None:
    written = re.findall(r"`(\w+)`", rows(section(KEYS, "Keys of a guest"))[key].split("|")[1])[0]
    said = GuestKeys.model_validate({key: int(written) if written.isdigit() else written, "image": "micro"})
    silent = GuestKeys(image="micro")
    assert resolve_guest(said, source="docs") == resolve_guest(silent, source="docs")


def test_the_reference_has_exactly_the_options_that_there_are() -> None:
    page = (REFERENCE / "options.md").read_text()
    written = re.findall(r"^\| `(--.*?)` \| `(.*?)` \| `(.*?)` \| (?:`(.*?)`)? ?\|", page, re.MULTILINE)
    wanted = [(f"{each.flag}={each.metavar}", each.env, each.ini, each.default) for each in OPTIONS]
    assert written == wanted


def test_the_reference_has_exactly_the_fixtures_that_there_are() -> None:
    table = (REFERENCE / "fixtures.md").read_text().split("\n## ")[0]
    assert rows(table).keys() == set(plugin.__all__)


@pytest.mark.parametrize(
    ("page", "described"),
    [("fixtures.md", HostFacts), ("artifacts.md", Event), ("guest.md", CommandResult)],
)
def test_the_reference_has_the_attributes_of_what_is_given(page: str, described: type[Any]) -> None:
    text = (REFERENCE / page).read_text()
    assert [field.name for field in fields(described) if f"`{field.name}`" not in text] == []


def verbs(described: type, prefix: str) -> Iterator[str]:
    """The public names of a class as the reference writes them, with the defaults of their arguments."""
    for name in (name for name in dir(described) if not name.startswith("_")):
        member = inspect.getattr_static(described, name)
        yield prefix + name + ("" if isinstance(member, property) else arguments(member))


def arguments(function: Any) -> str:
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in list(inspect.signature(function).parameters.values())[1:]
    ]
    return re.sub(r"(\d)\.0\b", r"\1", str(inspect.Signature(bare)))


@pytest.mark.parametrize(
    ("described", "prefix"), [(Guest, ""), (SshChannel, "ssh."), (SerialConsole, "serial.")]
)
def test_the_reference_has_every_verb_with_its_arguments(described: type, prefix: str) -> None:
    page = (REFERENCE / "guest.md").read_text()
    internal = page.split("The plugin itself uses")[1]
    missing = [
        verb
        for verb in verbs(described, prefix)
        if f"`{verb}`" not in page and f"`{verb.split('(')[0]}`" not in internal
    ]
    assert missing == []


def test_the_reference_has_everything_of_a_guests_usb_devices() -> None:
    page = section((REFERENCE / "guest.md").read_text(), "USB devices")
    for verb in (GuestUsb.attach, GuestUsb.detach):
        assert f"`usb.{verb.__name__}{arguments(verb)}`" in page
    for name in ("name", "id", "serial", "port", "device", "is_plugged", "plug()", "unplug()"):
        assert f"`{name}`" in page


def test_the_reference_has_everything_of_a_virtual_usb_device() -> None:
    page = (REFERENCE / "virtual-usb-device.md").read_text()
    public = [name for name in dir(VirtualUsbDevice) if not name.startswith("_")]
    called = [name + arguments(getattr(VirtualUsbDevice, name)) for name in public if is_verb(name)]
    described = [each.name for given in (UsbInterface, UsbEndpoint, ControlRequest) for each in fields(given)]
    assert [name for name in (*public, *called, *described) if f"`{name}" not in page] == []


def is_verb(name: str) -> bool:
    return inspect.isfunction(inspect.getattr_static(VirtualUsbDevice, name))


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command below a group of typer's, whose own copy of click has no types to import."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}")
    if not hasattr(command, "commands"):
        yield path, command


def test_the_reference_has_every_command_with_its_options() -> None:
    page = (REFERENCE / "command.md").read_text()
    for path, command in commands(typer.main.get_command(cli.app), "kvmlab"):
        row = re.search(rf"^\| `{path}[ `].*$", page, re.MULTILINE)
        assert row, path
        flags = [option for each in command.params for option in each.opts if option.startswith("--")]
        assert [flag for flag in flags if flag not in row[0]] == [], path


def test_the_reference_has_every_error() -> None:
    page = (REFERENCE / "errors.md").read_text()
    ours = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    ]
    assert [name for name in ours if f" {name} " not in page] == []


@every_page
def test_every_link_leads_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", page.read_text())
    assert [target for target in targets if target and not (page.parent / target).exists()] == []


@every_page
def test_every_page_can_be_found(page: Path) -> None:
    named = {
        (other.parent / target).resolve()
        for other in PAGES
        for target in re.findall(r"\]\(([^)#:]+)", other.read_text())
        if other != page
    }
    assert page.resolve() in named or page.parent == ROOT


@every_page
def test_every_lab_in_an_example_is_valid(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "toml")):
        if "[guest." in text:
            file = tmp_path / f"example{number}.lab.toml"
            file.write_text(text)
            assert load_lab(file).guests


@every_page
def test_every_mark_in_an_example_is_valid(page: Path) -> None:
    for call in (node for text in blocks(page, "python") for node in ast.walk(ast.parse(text))):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("mark.kvm"):
            keys = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
            merge_marks([WrittenMark(str(page), page.parent, keys)])
