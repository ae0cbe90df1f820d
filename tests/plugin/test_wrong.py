"""What somebody wrote is wrong: an option ends the run with exit 4, a mark is an error of its test."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_kvmlab.drivers import qemu_img
from tests.plugin.project import Project, section_of

USES_GUEST = "def test_it(guest): ...\n"

OPTIONS = {
    "host": (["--kvm-host=privat"], "*--kvm-host: should be auto, private,*(did you mean 'private'?)*"),
    "remote": (["--kvm-host=qemu+ssh://web/system"], "*is a remote libvirt: *run pytest there instead*"),
    "accel": (["--kvm-accel=kvn"], "*--kvm-accel: should be auto, kvm or tcg (did you mean 'kvm'?)*"),
    "keep": (["--kvm-keep=fail"], "*--kvm-keep: should be never, failed or always*"),
    "scale": (["--kvm-timeout-scale=0"], "*--kvm-timeout-scale: should be 'auto' or a number above zero*"),
    "image": (["--kvm-image=/srv/new.qcow2"], "*--kvm-image: should be NAME=PATH*"),
    "lab": (["--kvm-lab-file=dmo"], "*no lab is called 'dmo' (did you mean 'demo'?)*"),
    "lab path": (["--kvm-lab-file=no.lab.toml"], "*no.lab.toml cannot be read: No such file*"),
    "lab content": (
        ["--kvm-lab-file=bad.lab.toml"],
        "*bad.lab.toml*memroy*(did you mean 'memory'?)*",
    ),
    "shared": (
        ["--kvm-host=qemu:///system", "--kvm-keep=failed"],
        "*qemu:///system cannot be kept*",
    ),
    "workers": (["-n2", "--kvm-accel=kvn"], "*--kvm-accel: should be auto, kvm or tcg*"),
    "workers' lab": (["-n2", "--kvm-lab-file=bad.lab.toml"], "*(did you mean 'memory'?)*"),
}


def usage_error(result: pytest.RunResult, message: str) -> None:
    """One clear message, and nothing but it."""
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines([f"ERROR: {message}"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


@pytest.mark.parametrize(("arguments", "message"), OPTIONS.values(), ids=OPTIONS)
def test_a_wrong_option_ends_the_run(project: Project, arguments: list[str], message: str) -> None:
    project.write("bad.lab.toml", '[guest.web]\nimage = "micro"\nmemroy = "1GiB"\n')
    project.write("test_it.py", USES_GUEST)
    usage_error(project.pytest("--kvm-lab", *arguments), message)


BAD = '[guest.web]\nimage = "micro"\nmemroy = "1GiB"\n'


@pytest.mark.parametrize(
    ("fixture", "workers"),
    [("guest", []), ("kvm_lab", []), ("shared_guest", []), ("shared_lab", []), ("lab", ["-n2"])],
)
def test_a_wrong_lab_file_above_a_test_ends_the_run(
    project: Project, fixture: str, workers: list[str]
) -> None:
    bad = project.write("bad.lab.toml", BAD)
    project.write("tests/test_it.py", f"def test_none(): ...\ndef test_it({fixture}): ...\n")
    result = project.pytest("--kvm-lab", "--kvm-host=embed", *workers)
    usage_error(result, f"{bad}: guest.web.memroy*(did you mean 'memory'?)*")
    result.stdout.no_fnmatch_line("*passed*")
    assert not (project.folder / "kvmlab-artifacts" / "run.json").exists()


def test_every_wrong_lab_file_is_told_once_and_those_of_no_test_that_runs_not_at_all(
    project: Project,
) -> None:
    for folder in ("a", "b", "c"):
        project.write(f"{folder}/{folder}.lab.toml", BAD)
        project.write(f"{folder}/test_{folder}.py", f"def test_1(lab): ...\ndef test_{folder}(guest): ...\n")
    told = str(project.pytest("--kvm-lab", "--kvm-host=embed", "-k", "test_a or test_b").stdout)
    assert [told.count(f"{folder}.lab.toml: guest.web.memroy") for folder in ("a", "b", "c")] == [1, 1, 0]


def test_a_lab_file_that_no_test_gets_ends_nothing(project: Project) -> None:
    project.write("bad.lab.toml", BAD)
    text = (
        "import pytest\n@pytest.mark.kvm(image='not-there')\ndef test_it(guest): ...\ndef test_none(): ...\n"
    )
    project.write("test_it.py", text)
    project.pytest("--kvm-lab", "--kvm-host=embed").assert_outcomes(passed=1, errors=1)


def test_a_wrong_ini_key_ends_the_run(project: Project) -> None:
    project.write("pytest.ini", "[pytest]\nkvm_host = embedd\n")
    usage_error(project.pytest("--kvm-lab"), "ini key kvm_host: should be *(did you mean 'embed'?)*")


def test_a_wrong_environment_variable_ends_the_run(project: Project) -> None:
    usage_error(
        project.pytest("--kvm-lab", KVMLAB_ACCEL="fast"), "environment variable KVMLAB_ACCEL: should be *"
    )


def test_an_unknown_environment_variable_ends_the_run(project: Project) -> None:
    usage_error(
        project.pytest(KVMLAB_HOTS="auto"), "*KVMLAB_HOTS: no such option (did you mean 'KVMLAB_HOST'?)*"
    )


def test_the_command_line_wins_over_a_wrong_environment(project: Project) -> None:
    project.write("test_it.py", "def test_it(): ...\n")
    project.pytest("--kvm-keep=never", KVMLAB_KEEP="sometimes").assert_outcomes(passed=1)


MARKS = {
    "key": (
        "kvm(image='micro', memroy='1GiB')",
        "ConfigError: mark 'kvm' *memroy*(did you mean 'memory'?)*",
    ),
    "unit": ("kvm(image='micro', memory=512)", "ConfigError: mark 'kvm' of *memory*"),
    "value": ("kvm(image='micro', memory='512MB!')", "ConfigError: mark 'kvm' of *memory*"),
    "positional": ("kvm('micro')", "ConfigError: *takes keyword arguments only*"),
    "image": ("kvm(image='micor')", "ImageError: there is no image 'micor' (did you mean 'micro'?)*"),
    "no_image": ("kvm(memory='1GiB')", "ConfigError: *no image is named*"),
    "lab": ("kvm(lab='dmo')", "ConfigError: no lab is called 'dmo' (did you mean 'demo'?)*"),
    "guest": (
        "kvm(lab='demo', guest='mirco')",
        "ConfigError: *no guest 'mirco' (did you mean 'micro'?)*",
    ),
    "no_lab": ("kvm(guest='web')", "ConfigError: *guest 'web' is of no lab*"),
}


@pytest.fixture(scope="module")
def wrong_marks(module_project: Project) -> pytest.RunResult:
    """One run of a test for each wrong mark, and of one that needs no guest."""
    tests = [f"@pytest.mark.{mark}\ndef test_{name}(guest): ...\n" for name, (mark, _) in MARKS.items()]
    module_project.write("test_marks.py", "import pytest\n" + "".join(tests) + "def test_good(): ...\n")
    return module_project.pytest("--kvm-lab")


def test_wrong_marks_are_errors_of_their_tests_alone(wrong_marks: pytest.RunResult) -> None:
    wrong_marks.assert_outcomes(errors=len(MARKS), passed=1)
    assert wrong_marks.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("name", MARKS)
def test_a_wrong_mark_is_told_without_traceback(wrong_marks: pytest.RunResult, name: str) -> None:
    _, message = MARKS[name]
    report = section_of(str(wrong_marks.stdout), f"test_{name}").splitlines()
    pytest.LineMatcher(report[:1]).fnmatch_lines([message])
    assert not [line for line in report if re.search(r"\.py:\d+: ", line)]


NO_BRIDGE = """
[network.lan]
mode = "bridge"
bridge = "kvl-none"

[guest.web]
image = "not-built-either"
networks = ["lan"]
"""


def test_a_bridge_that_is_not_there_is_told_before_an_image_is_looked_for(project: Project) -> None:
    project.write("campus.lab.toml", NO_BRIDGE)
    project.write("test_it.py", f"def test_lab(lab): ...\n{USES_GUEST}")
    result = project.pytest("--kvm-lab", "--kvm-host=private")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["HostError: network 'lan': this host has no bridge kvl-none"])
    result.stdout.no_fnmatch_line("*no image*")


def missing(path: Path) -> None:
    """Nothing is there."""


def folder(path: Path) -> None:
    path.mkdir()


def truncated(path: Path) -> None:
    qemu_img.create_blank(path, 64 * 2**20)
    path.write_bytes(path.read_bytes()[:100])


def lie(path: Path) -> None:
    path.write_bytes(b"this is no disk" * 100)


def backed(path: Path) -> None:
    base = path.with_name("base.qcow2")
    qemu_img.create_blank(base, 2**20)
    qemu_img.create_overlay(base, "qcow2", path)


CANDIDATES = {
    missing: "ImageError: *new.qcow2*",
    folder: "ImageError: *new.qcow2*",
    truncated: "ImageError: *new.qcow2*",
    lie: "ImageError: *new.qcow2*",
    backed: "ImageError: *new.qcow2*backing*",
}


@pytest.mark.parametrize(("make", "message"), CANDIDATES.items(), ids=[make.__name__ for make in CANDIDATES])
def test_a_candidate_that_is_no_sound_disk_is_refused(
    project: Project, make: Callable[[Path], None], message: str
) -> None:
    make(project.folder / "new.qcow2")
    project.write("test_it.py", "import pytest\n@pytest.mark.kvm(image='micro')\n" + USES_GUEST)
    result = project.pytest("--kvm-lab", "--kvm-image=micro=new.qcow2")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([message])
