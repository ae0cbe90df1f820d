"""The table of keys that comes with an imported image."""

from pathlib import Path

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.guest_file import load_guest_file


def file(folder: Path, text: str) -> Path:
    path = folder / "web.toml"
    path.write_text(text)
    return path


def test_paths_are_seen_from_the_files_folder_and_all_else_stays_as_written(tmp_path: Path) -> None:
    written = """
    [guest]
    memory = "1GiB"
    host_key = "learn"
    cdrom = "/srv/tools.iso"
    login = { user = "root", key = "keys/id" }
    disks = [{ size = "1GiB" }, { file = "data.qcow2", format = "qcow2" }]
    """
    assert load_guest_file(file(tmp_path, written)) == {
        "memory": "1GiB",
        "host_key": "learn",
        "cdrom": "/srv/tools.iso",
        "login": {"user": "root", "key": str(tmp_path / "keys/id")},
        "disks": [{"size": "1GiB"}, {"file": str(tmp_path / "data.qcow2"), "format": "qcow2"}],
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[guest", "not TOML"),
        ("", "guest: missing"),
        ("[guest]\nmemroy = '1GiB'", "did you mean 'memory'"),
        ("[guest]\nimage = 'micro'", "guest.image: the image is the one that is imported"),
        ("kind = 'debian'\n[guest]", "kind: unknown key"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_guest_file(file(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read: No such file"):
        load_guest_file(tmp_path / "none.toml")


def test_a_password_is_in_no_message(tmp_path: Path) -> None:
    both = "[guest]\nlogin = { user = 'root', password = 'secret', key = 'id' }"
    with pytest.raises(ConfigError, match="has a password and a key") as caught:
        load_guest_file(file(tmp_path, both))
    assert "secret" not in str(caught.value)
