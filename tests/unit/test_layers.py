"""The rules of the house that can be read from the imports."""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pytest_kvmlab

PACKAGE = Path(pytest_kvmlab.__file__).parent

# Lowest first: a room imports from the layers below its own, never from above nor from its neighbours.
LAYERS = (
    ("errors", "deadline", "journal", "progress"),
    ("kernel_log",),
    ("spec",),
    ("plan", "drivers", "compare"),
    ("keeper", "checks"),
    ("lab",),
    ("report",),
    ("plugin", "cli"),
    ("__init__", "fixtures"),  # what users see, and what uses it
)
NEIGHBOURS = {
    ("journal", "errors"),  # the foundations may name the errors
    ("deadline", "errors"),
    ("checks", "keeper"),  # a check starts what the keeper starts, in small
}

# Each outside thing has one door: only these modules may import it.
DOORS = {
    "libvirt": ("drivers/libvirt.py",),
    "libvirt_qemu": ("drivers/libvirt.py",),
    "paramiko": ("drivers/ssh*.py",),
    "cryptography": ("drivers/ssh*.py",),
    "pexpect": ("drivers/serial*.py",),
    "testinfra": ("drivers/testinfra.py", "lab/guest.py"),  # the guest only names its type
    "subprocess": ("drivers/*.py", "keeper/*.py"),
    "pydantic": ("spec/*.py",),
    "typer": ("cli/*.py",),
    "rich": ("cli/*.py", "report/*.py", "plugin/*.py"),
    "platformdirs": ("lab/run.py", "lab/baselines.py"),
    "jinja2": ("report/*.py",),
    "markupsafe": ("report/*.py",),
    "matplotlib": ("report/*.py",),
    "pytest": ("plugin/*.py", "fixtures/*.py"),
}
# Who may sleep: everyone else waits on something that tells them.
SLEEPERS = (
    "lab/waits.py",
    "keeper/private_host.py",  # asks its daemon for an answer before there is anything else to wait on
    "keeper/real_bridge.py",  # asks the kernel, which tells nobody that a port has begun to forward
)
# The keeper runs without our dependencies: from the package it sees itself and what is as bare as it is.
KEEPER_SEES = ("keeper", "errors", "deadline", "journal")
# Names that tell nobody what is inside.
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "manager", "handler", "base", "core", "misc", "common"}
# What plain `pytest` must not pay for when the plugin is only installed.
HEAVY = {
    "libvirt",
    "paramiko",
    "cryptography",
    "pexpect",
    "pydantic",
    "rich",
    "typer",
    "platformdirs",
    "testinfra",
    "jinja2",
    "matplotlib",
}


@dataclass(frozen=True)
class Module:
    """One file of the package: `path` relative to it, `imports` as dotted names, resolved."""

    path: str
    imports: frozenset[str]
    sleeps: bool = False

    @property
    def room(self) -> str:
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def name(self) -> str:
        dotted = self.path.removesuffix(".py").removesuffix("__init__").rstrip("/").replace("/", ".")
        return f"pytest_kvmlab.{dotted}".rstrip(".")


def read_module(path: str, source: str) -> Module:
    tree = ast.parse(source, path)
    return Module(path, frozenset(imported_names(tree)), any(map(is_sleep, ast.walk(tree))))


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Every name that an import in the file could mean, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_sleep(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "time" and any(alias.name == "sleep" for alias in node.names)
    return isinstance(node, ast.Attribute) and node.attr == "sleep"


def source_files() -> Iterator[Path]:
    yield from PACKAGE.rglob("*.py")
    yield from (PACKAGE / "fixtures").rglob("*.py")  # a symlink in a checkout, which rglob passes by


def read_package() -> list[Module]:
    files = {path.relative_to(PACKAGE).as_posix(): path for path in source_files()}
    return [read_module(name, path.read_text(encoding="utf-8")) for name, path in sorted(files.items())]


def layer_of(room: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if room in rooms)


def our_rooms(module: Module) -> set[str]:
    """The rooms that a module imports from, its own aside."""
    dotted = (name.split(".") for name in module.imports)
    rooms = {parts[1] for parts in dotted if parts[0] == "pytest_kvmlab" and len(parts) > 1}
    return (rooms - {module.room}) & {room for layer in LAYERS for room in layer}


def climbs(module: Module) -> set[str]:
    """The rooms that a module may not know."""
    own = layer_of(module.room)
    above = {room for room in our_rooms(module) if layer_of(room) >= own}
    return {room for room in above if (module.room, room) not in NEIGHBOURS}


def broken_doors(module: Module) -> set[str]:
    outside = {name.split(".")[0] for name in module.imports} & DOORS.keys()
    return {name for name in outside if not any(fnmatch(module.path, door) for door in DOORS[name])}


def import_graph(modules: list[Module]) -> Mapping[str, Collection[str]]:
    """Which module imports which; a bare `import pytest_kvmlab` counts as nothing: all do it."""
    known = {module.name for module in modules}
    return {
        module.name: {nearest_module(name, known) for name in module.imports - {"pytest_kvmlab"}}
        - {module.name, ""}
        for module in modules
    }


def nearest_module(name: str, known: Collection[str]) -> str:
    """The module that a dotted name is or lies in: `from package import module` means the module alone."""
    return next((found for found in (name, name.rpartition(".")[0]) if found in known), "")


def foreign_to_the_keeper(module: Module) -> set[str]:
    outside = {name.split(".")[0] for name in module.imports} - {"pytest_kvmlab"}
    return (outside - sys.stdlib_module_names) | (our_rooms(module) - set(KEEPER_SEES))


MODULES = read_package()


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.path)
def test_a_module_imports_only_from_the_layers_below(module: Module) -> None:
    assert not climbs(module)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.path)
def test_an_outside_thing_is_imported_only_by_its_door(module: Module) -> None:
    assert not broken_doors(module)


def test_no_import_cycle() -> None:
    try:
        TopologicalSorter(import_graph(MODULES)).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_the_wait_module_sleeps() -> None:
    sleepers = {module.path for module in MODULES if module.sleeps}
    assert sleepers <= set(SLEEPERS)


def test_the_keeper_and_what_it_sees_run_on_the_standard_library_alone() -> None:
    bare = [module for module in MODULES if module.room in KEEPER_SEES]
    foreign = {module.path: foreign_to_the_keeper(module) for module in bare}
    assert {path: names for path, names in foreign.items() if names} == {}


def test_every_module_is_named_after_what_it_holds() -> None:
    assert not [module.path for module in MODULES if EMPTY_NAMES & set(module.name.split("."))]


def test_the_entry_point_is_light() -> None:
    """A fresh interpreter, because the one that runs the tests has long imported everything."""
    program = f"import sys, pytest_kvmlab.plugin; print(*sorted({HEAVY!r} & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout.split() == []


@pytest.mark.parametrize(
    ("path", "source", "refused"),
    [
        ("plan/guest.py", "from pytest_kvmlab.drivers import ssh", "drivers"),
        ("drivers/ssh.py", "from pytest_kvmlab.plan.guest import GuestPlan", "plan"),
        ("errors.py", "import pytest_kvmlab.journal", "journal"),
        ("lab/guest.py", "def late():\n    from pytest_kvmlab import report", "report"),
        ("lab/guest.py", "import pytest_kvmlab.__init__", "__init__"),
    ],
)
def test_a_climbing_import_is_seen(path: str, source: str, refused: str) -> None:
    assert climbs(read_module(path, source)) == {refused}


@pytest.mark.parametrize(
    ("path", "source", "refused"),
    [
        ("lab/run.py", "import libvirt", "libvirt"),
        ("drivers/serial.py", "from paramiko import SSHClient", "paramiko"),
        ("plan/guest.py", "import subprocess as run", "subprocess"),
        ("lab/guest.py", "from pytest import fixture", "pytest"),
    ],
)
def test_a_door_passed_by_is_seen(path: str, source: str, refused: str) -> None:
    assert broken_doors(read_module(path, source)) == {refused}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("lab/a.py", "from pytest_kvmlab.lab import b"), ("lab/b.py", "import pytest_kvmlab.lab.a")),
        (
            ("__init__.py", "from pytest_kvmlab.lab.a import Guest"),
            ("lab/a.py", "from pytest_kvmlab import Guest"),
        ),
    ],
)
def test_a_cycle_is_seen(first: tuple[str, str], second: tuple[str, str]) -> None:
    with pytest.raises(CycleError):
        TopologicalSorter(import_graph([read_module(*first), read_module(*second)])).prepare()


@pytest.mark.parametrize(
    "source", ["import time\ntime.sleep(1)", "from time import sleep", "import time\nnap = time.sleep"]
)
def test_a_sleep_is_seen(source: str) -> None:
    assert read_module("lab/guest.py", source).sleeps


def test_the_keeper_with_a_dependency_is_seen() -> None:
    module = read_module("keeper/init.py", "import os, paramiko\nfrom pytest_kvmlab.lab import run")
    assert foreign_to_the_keeper(module) == {"paramiko", "lab"}
