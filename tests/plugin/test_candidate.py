"""`--kvm-image`: a whole suite against a file that is in no store yet."""

import hashlib
from pathlib import Path

import pytest

from tests.guest.foreign_disks import converted, run
from tests.plugin.project import Project, junit_properties

SUITE = """
import pytest
pytestmark = pytest.mark.kvm(image="micro")

@pytest.mark.parametrize("time", [1, 2])
def test_the_new_disk_is_there_and_clean(guest, time):
    assert guest.succeed("cat /data/version") == "new\\n"
    guest.succeed("echo changed >/data/version && sync")
"""


def data_disk(folder: Path) -> Path:
    """The disk of a micro image, with another content."""
    (folder / "tree").mkdir()
    (folder / "tree" / "version").write_text("new\n")
    run("mke2fs", "-q", "-t", "ext4", "-L", "data", "-d", str(folder / "tree"), str(folder / "new"), "16M")
    return folder / "new"


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_guests_start_from_a_candidate_which_stays_as_it_is(
    project: Project, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    raw = data_disk(tmp_path_factory.mktemp("disk"))
    candidate = raw if kind == "raw" else converted(raw, kind)
    before = hashlib.sha256(candidate.read_bytes()).hexdigest()
    project.write("test_it.py", SUITE)
    result = project.pytest("--kvm-lab", f"--kvm-image=micro={candidate}", "--junit-xml=report.xml")
    result.assert_outcomes(passed=2)
    assert hashlib.sha256(candidate.read_bytes()).hexdigest() == before
    told = junit_properties(project.folder / "report.xml").values()
    assert [each["kvmlab.guest.image_file"] for each in told] == [str(candidate)] * 2
