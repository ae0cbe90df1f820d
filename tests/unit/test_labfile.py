import json
from pathlib import Path

import pytest

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
        ("[guest.web]\nimage = 'micro'\n[network.campus]\nmode = 'nat'", "network: unknown key"),
        ("[guest.web]\nimage = 'micro'\n[app.wiki]\nport = 80", "app: unknown key"),
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


def test_one_mac_address_for_two_guests_is_refused(tmp_path: Path) -> None:
    mac = "networks = [{ mac = '52:54:00:AA:00:01' }]\n"
    told = refusal(tmp_path, f"[guest.web]\n{mac}[guest.db]\n{mac.lower()}")
    assert "guest.web.networks[0] and guest.db.networks[0] have one MAC address, 52:54:00:aa:00:01" in told


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


def test_the_schema_knows_every_key_and_no_other() -> None:
    schema = lab_schema()
    guest = schema["$defs"]["LabGuest"]
    assert json.loads(json.dumps(schema)) == schema
    assert {"image", "ready", "host_key", "after"} <= set(guest["properties"])
    assert guest["additionalProperties"] is False
