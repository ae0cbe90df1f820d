import json
import tomllib
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.labfile import LabSpec, find_lab, lab_schema, load_lab

TWO_GUESTS = """
[guest.web]
image = "micro"
kernel = "boot/vmlinuz"
networks = [{ mac = "52:54:00:12:34:68" }]
after = ["db"]

[guest.db]
image = "micro"
memory = "512MiB"
"""

WIRED = """
[network.campus]
mode = "nat"
subnet = "10.77.0.0/24"
domain = "campus.test"
uplink = true

[network.lan]
mode = "bridge"
bridge = "br0"
simulated = true
subnet = "192.168.7.0/24"

[network.back]
mode = "isolated"

[network.out]
mode = "user"

[guest.web]
networks = [{ name = "campus", address = "10.77.0.10", mac = "52:54:00:12:34:68" }, "lan", { mode = "user" }]

[app.wiki]
guest = "web"
port = 80
path = "/wiki/"
"""
ROOT = Path(__file__).parents[2]
SCHEMA = Draft202012Validator(lab_schema())


def load(folder: Path, text: str | bytes) -> LabSpec:
    path = folder / "wiki.lab.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_lab(path)


def refusal(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    assert "wiki.lab.toml" in str(caught.value)
    return str(caught.value)


def test_a_lab_has_the_guests_of_its_file(tmp_path: Path) -> None:
    lab = load(tmp_path, TWO_GUESTS)
    assert (lab.name, list(lab.guests)) == ("wiki", ["web", "db"])
    assert lab.guests["web"].after == ("db",)
    assert lab.guests["web"].kernel == tmp_path / "boot/vmlinuz"
    assert lab.guests["db"].memory == 512 * 2**20


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "guest"),
        ("[guest]", "guest"),
        ("[gest.web]\nimage = 'micro'", "gest: unknown key (did you mean 'guest'?)"),
        ("[guest.web]\nimag = 'micro'", "guest.web.imag: unknown key (did you mean 'image'?)"),
        ("[guest.web]\n[netwrok.campus]\nmode = 'nat'", "netwrok: unknown key (did you mean 'network'?)"),
        ("[guest.web]\n[network.campus]", "network.campus.mode: missing"),
        ("[guest.web]\n[network.campus]\nmode = 'natt'", "did you mean 'nat'?"),
        ("[guest.web]\n[network.Campus]\nmode = 'nat'", "a network's name is a lower-case letter"),
        (
            "[guest.web]\n[network.a]\nmode = 'nat'\nsubent = '10.0.0.0/24'",
            "network.a.subent: unknown key (did you mean 'subnet'?)",
        ),
        ("[guest.web]\n[app.wiki]\nport = 80", "app.wiki.guest: missing"),
        ("[guest.web]\n[app.Wiki]\nguest = 'web'\nport = 80", "an application's name is a lower-case letter"),
        ("[guest.web]\n[app.wiki]\nguest = 'web'\nport = 0", "app.wiki.port: "),
        ("[guest.web]\n[app.wiki]\nguest = 'web'\nport = '80'", "app.wiki.port: "),
        (
            "[guest.web]\n[app.wiki]\nguest = 'web'\nport = 80\npath = 'x'",
            "app.wiki.path: should be the path",
        ),
        ("[guest.Web]\nimage = 'micro'", "a guest's name is a lower-case letter"),
        ('[guest."../x"]\nimage = "micro"', "a guest's name is a lower-case letter"),
        ('[guest."web\\n"]\nimage = "micro"', "a guest's name is a lower-case letter"),
        (f"[guest.{'a' * 32}]\nimage = 'micro'", "a guest's name is a lower-case letter"),
        (
            "[guest.web]\nafter = ['dbs']\n[guest.db]",
            "guest.web.after: no guest is called 'dbs' (did you mean 'db'?)",
        ),
        ("[guest.a]\nafter = ['b']\n[guest.b]\nafter = ['a']", "wait for each other: "),
        ("[guest.a]\nafter = ['a']", "wait for each other: a after a"),
        ("[guest.web]\nimage = 'micro'\nimage = 'other'\n", "at line 3"),
        ("[guest.web]\nimage = micro", "at line 2"),
        (b"[guest.web]\nimage = '\xff'", "byte 21 is not UTF-8"),
        ("#" * 2**20 + "\n", "larger than 1 MiB"),
    ],
)
def test_a_wrong_lab_file_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert said in refusal(tmp_path, text)


def test_a_missing_lab_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.lab\.toml cannot be read: No such file"):
        load_lab(tmp_path / "gone.lab.toml")


def test_a_folder_is_no_lab_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        load_lab(tmp_path)


def test_the_nearest_lab_is_found(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "far.lab.toml").touch()
    assert find_lab(inner) == tmp_path / "far.lab.toml"
    (tmp_path / "a" / "near.lab.toml").touch()
    assert find_lab(inner / "test_wiki.py") == tmp_path / "a" / "near.lab.toml"


def test_a_tree_without_a_lab_has_none(tmp_path: Path) -> None:
    assert find_lab(tmp_path) is None


def test_two_labs_in_one_folder_are_both_named(tmp_path: Path) -> None:
    for name in ("a.lab.toml", "b.lab.toml"):
        (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=r"a\.lab\.toml\n.*b\.lab\.toml"):
        find_lab(tmp_path)
    assert find_lab(tmp_path, Path("c.lab.toml")) == Path("c.lab.toml")


def test_a_lab_that_is_named_for_all_is_that_of_folders_without_one(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    own = tmp_path / "own" / "own.lab.toml"
    own.touch()
    named = Path("named.lab.toml")
    assert [find_lab(tmp_path, named), find_lab(own.parent, named)] == [named, own]


def test_a_lab_has_the_networks_and_applications_of_its_file(tmp_path: Path) -> None:
    lab = load(tmp_path, WIRED)
    assert lab.networks["campus"].subnet == IPv4Network("10.77.0.0/24")
    assert [card.name for card in lab.guests["web"].networks or ()] == ["campus", "lan", None]
    assert (lab.apps["wiki"].port, lab.apps["wiki"].path) == (80, "/wiki/")


def test_all_that_is_wrong_with_a_lab_is_told_at_once(tmp_path: Path) -> None:
    told = refusal(
        tmp_path, "[guest.web]\nafter = ['wbe']\nnetworks = ['campus']\n[app.wiki]\nguest = 'wib'\nport = 80"
    )
    assert told.splitlines()[1:] == [
        "  - guest.web.after: no guest is called 'wbe' (did you mean 'web'?)",
        "  - guest.web.networks[0].name: no network is called 'campus'",
        "  - app.wiki.guest: no guest is called 'wib' (did you mean 'web'?)",
        "  what to do: its guests: web; describe it: [network.NAME]",
    ]


def test_the_schema_is_one() -> None:
    schema = lab_schema()
    Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema


@pytest.mark.parametrize("lab", [*sorted((ROOT / "fixtures").glob("*/*.lab.toml"))], ids=lambda lab: lab.stem)
def test_the_schema_takes_every_lab_that_is_shipped(lab: Path) -> None:
    assert SCHEMA.is_valid(tomllib.loads(lab.read_text()))


@pytest.mark.parametrize("text", [TWO_GUESTS, WIRED])
def test_the_schema_takes_what_is_right(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text).guests
    assert SCHEMA.is_valid(tomllib.loads(text))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[guest]",
        "[gest.web]",
        "[guest.Web]",
        "[guest.web]\nimag = 'micro'",
        "[guest.web]\nafter = 'db'",
        "[guest.web]\nnetworks = ['Campus']",
        "[guest.web]\nnetworks = [{ name = 'campus', address = '10.77.0' }]",
        "[guest.web]\nnetworks = [{ mac = '52-54-00-12-34-68' }]",
        "[guest.web]\n[network.campus]",
        "[guest.web]\n[network.Campus]\nmode = 'nat'",
        "[guest.web]\n[network.campus]\nmode = 'nat'\nsubnet = '10.77.0.0'",
        "[guest.web]\n[network.campus]\nmode = 'nat'\nbridge = 'br0'",
        "[guest.web]\n[network.campus]\nmode = 'user'\nsubnet = '10.77.0.0/24'",
        "[guest.web]\n[network.campus]\nmode = 'isolated'\nuplink = true",
        "[guest.web]\n[network.campus]\nmode = 'bridge'",
        "[guest.web]\n[network.campus]\nmode = 'bridge'\nbridge = 'br0'\nsubnet = '10.77.0.0/24'",
        "[guest.web]\n[network.campus]\nmode = 'bridge'\nbridge = 'a-bridge-too-far'",
        "[guest.web]\n[app.wiki]\nguest = 'web'",
        "[guest.web]\n[app.wiki]\nguest = 'web'\nport = 65536",
        "[guest.web]\n[app.wiki]\nguest = 'web'\nport = 80\npath = 'wiki'",
    ],
)
def test_the_schema_refuses_what_reading_refuses(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, text)
    assert not SCHEMA.is_valid(tomllib.loads(text))
