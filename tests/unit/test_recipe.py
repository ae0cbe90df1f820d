"""Recipes: what `image.toml` may say, and how a mistake is told."""

import shlex
from pathlib import Path

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.lab.build import build
from pytest_kvmlab.lab.recipes import command_to_build, recipe_digest, recipes
from pytest_kvmlab.lab.store import Store
from pytest_kvmlab.spec.recipe import InitramfsKeys, load_recipe

RECIPE = """
kind = "initramfs"
kernel = "linux-image-amd64"
packages = ["busybox-static"]
files = ["usr/bin/busybox"]
modules = ["ext4"]
[data]
size = "64MiB"
[boot]
cmdline = "console=ttyS0"
[guest]
memory = "256MiB"
"""


def written(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "image.toml").write_text(text, encoding="utf-8")
    return folder


def test_the_shipped_recipes_are_valid() -> None:
    shipped = {name: load_recipe(folder) for name, folder in recipes().items()}
    assert shipped["micro"].name == "micro"


def test_the_folder_names_the_image(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path / "tiny", RECIPE))
    assert isinstance(recipe.keys, InitramfsKeys)
    assert (recipe.name, recipe.keys.data.size, recipe.guest) == ("tiny", 64 * 2**20, {"memory": "256MiB"})


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("packages", "packges", r"packges: unknown key \(did you mean 'packages'\?\)"),
        ("size", "sise", r"data.sise: unknown key \(did you mean 'size'\?\)"),
        ("memory", "memroy", r"guest.memroy: unknown key \(did you mean 'memory'\?\)"),
        ('"initramfs"', '"initrafms"', r"kind: .*found 'initrafms'"),
        ('"64MiB"', "64", r"data.size: .*unit"),
        ('"busybox-static"', '"--allow-unauthenticated"', r"packages\[0\]"),
        ('"usr/bin/busybox"', '"../../etc/shadow"', r"files\[0\]: .*found '../../etc/shadow'"),
        ('"usr/bin/busybox"', '"/etc/shadow"', r"files\[0\]: .*without a leading slash"),
        ('kernel = "linux-image-amd64"', "", "kernel: missing"),
        ("kind =", "kind", "is not TOML"),
    ],
)
def test_a_mistake_names_file_key_and_what_is_valid(
    tmp_path: Path, right: str, wrong: str, told: str
) -> None:
    folder = written(tmp_path / "tiny", RECIPE.replace(right, wrong))
    with pytest.raises(ConfigError, match=told) as raised:
        load_recipe(folder)
    assert str(folder / "image.toml") in str(raised.value)


def test_a_folder_without_a_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    with pytest.raises(ConfigError, match="no recipe"):
        load_recipe(tmp_path / "tiny")


def test_a_folder_whose_name_cannot_be_an_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name an image"):
        load_recipe(written(tmp_path / "Ünfug", RECIPE))


def test_the_digest_follows_every_file_and_no_place(tmp_path: Path) -> None:
    one, other = (written(tmp_path / place, RECIPE) for place in ("one", "other"))
    assert recipe_digest(load_recipe(one)) == recipe_digest(load_recipe(other))
    (other / "init").write_text("#!/bin/sh\n")
    assert recipe_digest(load_recipe(one)) != recipe_digest(load_recipe(other))


def test_the_digest_follows_the_recipes_that_an_image_grows_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origins = {"bottom": None, "middle": "bottom", "top": "middle", "aside": "elsewhere"}
    shipped = {
        name: written(tmp_path / name, f'kind = "layer"\nfrom = "{origin}"\n' if origin else RECIPE)
        for name, origin in origins.items()
    }
    monkeypatch.setattr("pytest_kvmlab.lab.recipes.recipes", lambda: shipped)
    before = {name: recipe_digest(load_recipe(folder)) for name, folder in shipped.items()}
    (shipped["bottom"] / "init").write_text("#!/bin/sh\n")
    after = {name: recipe_digest(load_recipe(folder)) for name, folder in shipped.items()}
    assert {name for name in shipped if before[name] == after[name]} == {"aside"}


def test_who_builds_a_recipe_again_names_it_or_its_folder(tmp_path: Path) -> None:
    assert command_to_build(recipes()["micro"]) == "kvmlab image build micro"
    for name in ("micro", "my own"):
        assert command_to_build(tmp_path / name) == f"kvmlab image build {shlex.quote(str(tmp_path / name))}"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("alone", "alone from alone"),
        ("one", "one from two from one"),
        ("late", "late from one from two from one"),
    ],
)
def test_images_that_grow_from_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, told: str
) -> None:
    origins = {"alone": "alone", "one": "two", "two": "one", "late": "one"}
    circle = {
        name: written(tmp_path / name, f'kind = "layer"\nfrom = "{origin}"\n')
        for name, origin in origins.items()
    }
    monkeypatch.setattr("pytest_kvmlab.lab.recipes.recipes", lambda: circle)
    with pytest.raises(ConfigError, match=f"cannot grow from itself: {told}\n"):
        build(circle[asked], Store(tmp_path / "store"), progress=lambda _step, _share: None)
