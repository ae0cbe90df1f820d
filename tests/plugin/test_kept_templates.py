"""`--kvm-templates=keep`: what one run has frozen, the next one clones, as long as it is whole and good."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_kvmlab.lab.template_shelf import copy
from tests.plugin.project import Project

TEST = """
import pytest
@pytest.mark.kvm(image="micro")
def test_it(guest):
    guest.succeed("true")
    with open("templates", "a") as file:
        file.write(guest.machine.frozen.sha256 + "\\n")
"""


@pytest.fixture
def own_store(store: Path, tmp_path: Path) -> Path:
    """A store that has the image and the verdict on the accelerator, and no template of anybody's."""
    own = tmp_path / "store"
    image = (store / "names" / "micro").resolve()
    shutil.copytree(image, own / "images" / image.name)
    shutil.copytree(store / "accelerator", own / "accelerator")
    (own / "names").mkdir()
    (own / "names" / "micro").symlink_to(Path("..", "images", image.name))
    return own


def cut_short(kept: Path) -> None:
    os.truncate(kept / "0" / "memory", 2**20)


def leads_nowhere(kept: Path) -> None:
    """A state that no QEMU takes, though all hashes are right: a template that was bad from the first."""
    state, inventory = kept / "0" / "state", kept / "inventory.json"
    state.write_bytes(b"no state of any machine")
    guests = json.loads(inventory.read_text())
    guests[0]["files"]["state"] = copy(state, kept / "copy")
    (kept / "copy").unlink()
    inventory.write_text(json.dumps(guests))


@pytest.mark.parametrize(
    ("damage", "told"),
    [(cut_short, []), (leads_nowhere, ["1 x kept template removed: a clone does not start: *"])],
)
def test_a_run_clones_what_an_earlier_one_has_kept_unless_it_is_damaged(
    project: Project, own_store: Path, damage: Callable[[Path], None], told: list[str]
) -> None:
    project.write("test_it.py", TEST)

    def run() -> pytest.RunResult:
        result = project.pytest("--kvm-lab", "--kvm-templates=keep", KVMLAB_STORE=str(own_store))
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(["1 x clone"])
        return result

    run()
    (kept,) = (own_store / "templates").glob("[!.]*")
    run()
    damage(kept)
    run().stdout.fnmatch_lines_random(told)
    run()
    first, second, third, fourth = (project.folder / "templates").read_text().splitlines()
    assert first == second
    assert second != third
    assert third == fourth
