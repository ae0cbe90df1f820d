"""`kvmlab lab check` and `kvmlab lab schema`, by a user who may do nothing on this machine."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from jsonschema import Draft202012Validator

from tests.guest.unprivileged import Unprivileged

SHOP = """
[network.lan]
mode = "bridge"
bridge = "not-here"

[guest.web]
image = "not-built"
networks = ["lan"]
after = ["db"]

[guest.db]
image = "not-built"
"""
NETWORKS = "".join(f'[network.n{number}]\nmode = "isolated"\n' for number in range(9))
WRONG = {
    "key": (
        SHOP.replace("image", "imgae"),
        ["guest.db.imgae: unknown key (did you mean 'image'?)", "guest.web.imgae"],
    ),
    "values": (
        SHOP.replace('after = ["db"]', 'after = ["wbe"]') + '[app.shop]\nguest = "wbe"\nport = 80\n',
        ["guest.web.after: no guest is called 'wbe' (did you mean 'web'?)", "app.shop.guest: no guest is"],
    ),
    "limits": (
        f'{SHOP}[network.out]\nmode = "nat"\nsubnet = "198.18.0.0/24"\n{NETWORKS}',
        ["network.out.subnet: 198.18.0.0/24 overlaps", "network: 11 are made for the lab, and 8 is the most"],
    ),
}


@pytest.fixture(scope="module")
def nobody() -> Iterator[Unprivileged]:
    with TemporaryDirectory(prefix="kvl-", dir="/tmp") as folder:
        yield Unprivileged.prepare(Path(folder), guests=False)


def kvmlab(user: Unprivileged, *arguments: str) -> "subprocess.CompletedProcess[str]":
    main = "from pytest_kvmlab.cli import main; main()"
    return subprocess.run(
        [*user.python, "-c", main, "lab", *arguments],
        cwd=user.home,
        env=user.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_lab_that_is_right_is_good_whatever_this_machine_lacks(nobody: Unprivileged) -> None:
    (nobody.home / "shop.lab.toml").write_text(SHOP)
    told = kvmlab(nobody, "check", "shop.lab.toml")
    file = nobody.home / "shop.lab.toml"
    assert (told.returncode, told.stdout) == (0, f"{file}: good, guests: web, db\n"), told.stderr
    found = json.loads(kvmlab(nobody, "check", "shop.lab.toml", "--json").stdout)
    assert found == {"lab": "shop", "file": str(file), "guests": ["db", "web"]}


@pytest.mark.parametrize("name", WRONG)
def test_all_that_is_wrong_is_told_with_file_and_key(nobody: Unprivileged, name: str) -> None:
    text, mistakes = WRONG[name]
    (nobody.home / "wrong.lab.toml").write_text(text)
    told = kvmlab(nobody, "check", "wrong.lab.toml")
    assert (told.returncode, told.stdout) == (1, "")
    for said in (f"kvmlab: {nobody.home / 'wrong.lab.toml'}", *mistakes):
        assert said in told.stderr
    assert "Traceback" not in told.stderr


def test_a_lab_that_ships_is_checked_by_its_name(nobody: Unprivileged) -> None:
    assert kvmlab(nobody, "check", "wiki").stdout.endswith("wiki.lab.toml: good, guests: web, db\n")
    assert "no lab is called 'wikki' (did you mean 'wiki'?)" in kvmlab(nobody, "check", "wikki").stderr


def test_the_schema_tells_an_editor_right_labs_from_wrong_ones(nobody: Unprivileged) -> None:
    schema = json.loads(kvmlab(nobody, "schema").stdout)
    Draft202012Validator.check_schema(schema)
    assert schema["title"] == "pytest-kvmlab lab file"
    table: dict[str, dict[str, dict[str, object]]] = {"guest": {"web": {"image": "micro"}}}
    assert Draft202012Validator(schema).is_valid(table)
    table["guest"]["web"]["memroy"] = "1GiB"
    assert not Draft202012Validator(schema).is_valid(table)
