"""Images that an installer makes of an empty disk, in a guest that boots from its disc."""

import re
import tempfile
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pytest_kvmlab import Guest
from pytest_kvmlab.errors import ConfigError, ImageError
from pytest_kvmlab.lab.base_image import BaseImage, base_image
from pytest_kvmlab.lab.build import build, ensure
from pytest_kvmlab.lab.launch import Launcher
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.spec.guest import GuestKeys
from pytest_kvmlab.spec.recipe import load_recipe
from tests.guest.grub_disc import write_recipe

QUESTION = '[[dialogue]]\nexpect = "Go on. $"\nsend = "yes\\r"'
ANOTHER = '[[dialogue]]\nexpect = "Never asked"\nsend = "no\\r"'
ASK = 'echo -n "Go on? "\nread answer\n'


@pytest.fixture(autouse=True)
def evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a failed installation leaves to be looked at goes with the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def steps_of(recipe: Path, store: Store, launcher: Launcher) -> tuple[list[str], ImageError]:
    """What a build that fails told meanwhile, and its error."""
    steps: list[str] = []
    with pytest.raises(ImageError) as failure:
        build(recipe, store, guests=launcher, progress=lambda step, _share: steps.append(step))
    assert store.find(recipe.name) is None
    return steps, failure.value


@pytest.mark.kvm(image="micro-installed")
def test_what_was_installed_starts_from_its_disk_alone(guest: Guest) -> None:
    assert "<kernel>" not in guest.machine.xml_file.read_text()
    assert guest.machine.plan.cdrom is None
    assert guest.succeed("hostname") == "installed\n"
    assert "BOOT_IMAGE=/boot/vmlinuz" in guest.succeed("cat /proc/cmdline")
    assert "/dev/vda1 / ext4 rw" in guest.succeed("cat /proc/mounts")
    assert guest.serial.run("cat /etc/hostname").stdout == "installed\n"
    guest.succeed("echo kept >/note")
    guest.reboot()
    assert guest.succeed("cat /note") == "kept\n"


def test_an_installer_that_leaves_no_boot_sector_is_told(
    tmp_path: Path, store: Store, launcher: Launcher
) -> None:
    recipe = write_recipe(tmp_path / "lazy", f'{ASK}echo "thank you"\nhalt', QUESTION)
    steps, error = steps_of(recipe, store, launcher)
    assert "the installer of image 'lazy' ended, but its disk does not boot" in str(error)
    assert "starting the installer" in steps
    assert any("Go on?" in step for step in steps)


def test_an_installer_that_reboots_has_ended(tmp_path: Path, store: Store, launcher: Launcher) -> None:
    _, error = steps_of(write_recipe(tmp_path / "rebooter", "reboot"), store, launcher)
    assert "ended, but its disk does not boot" in str(error)


def test_an_installer_that_never_ends_is_told_with_step_console_and_screen(
    tmp_path: Path, store: Store, launcher: Launcher
) -> None:
    recipe = write_recipe(
        tmp_path / "endless", f'{ASK}echo "half done"\nsleep 1000', "timeout = 1", QUESTION, ANOTHER
    )
    _, error = steps_of(recipe, store, launcher)
    told = str(error)
    assert "the installer of image 'endless' did not finish: it takes longer than" in told
    assert "it waited for the serial line to show 'Never asked'" in told
    assert "the last of 2 steps that matched: 'Go on. $'" in told
    assert "half done" in told
    log, screen = (Path(line) for line in error.looked_at if re.search(r"\.(log|png)$", line))
    assert "half done" in log.read_text()
    assert screen.read_bytes().startswith(b"\x89PNG")


def test_an_installer_that_ends_amid_the_dialogue_is_told(
    tmp_path: Path, store: Store, launcher: Launcher
) -> None:
    _, error = steps_of(write_recipe(tmp_path / "early", "halt", ANOTHER), store, launcher)
    assert "did not finish: the serial line ended before it showed 'Never asked'" in str(error)
    assert "no step matched" in str(error)


@dataclass(frozen=True)
class MicroInstead:
    """Starts guests of the micro image on the hardware of the installer's: a system with drivers, at once."""

    launcher: Launcher

    def start(
        self, name: str, keys: GuestKeys, _image: BaseImage, *, source: str, timeout: float
    ) -> AbstractContextManager[Guest]:
        micro = base_image(ensure("micro", self.launcher.images._store, progress=lambda _step, _share: None))
        direct = replace(micro, boot=replace(micro.boot, disk=None))
        firmware_aside = keys.model_copy(update={"boot": None, "ready": None})
        return self.launcher.start(name, firmware_aside, direct, source=source, timeout=timeout)


def test_an_installer_finds_its_answers_on_a_second_disk(
    tmp_path: Path, store: Store, launcher: Launcher
) -> None:
    dialogue = """
        dialogue = [
            { expect = "# ", send = "mount -t vfat LABEL=OEMDRV /mnt; cat /mnt/ks.cfg\\n" },
            { expect = "as the recipe says", send = "poweroff -f\\n" },
        ]
        answers = { label = "OEMDRV" }
        timeout = 20
    """
    recipe = write_recipe(tmp_path / "reader", "halt", dialogue)
    (recipe / "answers").mkdir()
    (recipe / "answers" / "ks.cfg").write_text("as the recipe says\n")
    with pytest.raises(ImageError, match="ended, but its disk does not boot"):
        build(recipe, store, guests=MicroInstead(launcher), progress=lambda _step, _share: None)


def test_another_disc_than_the_recipe_means_is_refused_before_it_boots(
    tmp_path: Path, store: Store, launcher: Launcher
) -> None:
    steps, error = steps_of(write_recipe(tmp_path / "other", "halt", sha256="0" * 64), store, launcher)
    assert "is not the one that the recipe means" in str(error)
    assert "starting the installer" not in steps


def test_a_disc_is_either_there_or_made(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    folder.mkdir()
    (folder / "image.toml").write_text('kind = "installer"\nsize = "16MiB"')
    with pytest.raises(ConfigError, match="give either a disc that is there"):
        load_recipe(folder)


def test_a_dialogue_that_is_no_regular_expression_is_refused(tmp_path: Path) -> None:
    wrong = '[[dialogue]]\nexpect = "("\nsend = ""'
    with pytest.raises(ConfigError, match=r"dialogue\[0\].expect: is not a regular expression"):
        load_recipe(write_recipe(tmp_path / "wrong", "halt", wrong))


def test_without_a_way_to_start_guests_nothing_is_installed(tmp_path: Path, store: Store) -> None:
    with pytest.raises(ImageError, match="needs a guest, and there is nothing here to start one"):
        build(write_recipe(tmp_path / "alone", "halt"), store, progress=lambda _step, _share: None)
