from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import pytest

from pytest_kvmlab.errors import ConfigError
from pytest_kvmlab.spec.options import OPTIONS, Options, resolve_options


def resolve(
    command_line: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    ini: Mapping[str, object] | None = None,
) -> Options:
    return resolve_options(command_line or {}, environment or {}, ini or {})


def refusal(
    command_line: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
    ini: Mapping[str, object] | None = None,
) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(command_line, environment, ini)
    return str(caught.value)


def test_every_field_has_an_option_and_a_default() -> None:
    assert {field.name for field in fields(Options)} == {"lab", *(option.name for option in OPTIONS)}
    assert resolve() == Options(
        lab=False,
        lab_file=None,
        host="auto",
        accel="auto",
        image={},
        kernel=(),
        reset="auto",
        pool=None,
        templates="run",
        keep="never",
        store=None,
        artifacts=Path("kvmlab-artifacts"),
        wait=600.0,
        memory=None,
        timeout_scale=None,
        known_issues=None,
        baseline=None,
        fail_on="failure",
        report=None,
    )


def test_an_option_has_three_names() -> None:
    scale = next(option for option in OPTIONS if option.name == "timeout_scale")
    assert (scale.flag, scale.env, scale.ini) == (
        "--kvm-timeout-scale",
        "KVMLAB_TIMEOUT_SCALE",
        "kvm_timeout_scale",
    )


def test_the_command_line_wins_over_environment_ini_and_default() -> None:
    assert resolve({"accel": "kvm"}, {"KVMLAB_ACCEL": "tcg"}, {"accel": "auto"}).accel == "kvm"
    assert resolve(None, {"KVMLAB_ACCEL": "tcg"}, {"accel": "kvm"}).accel == "tcg"
    assert resolve(None, None, {"accel": "kvm"}).accel == "kvm"


def test_what_is_empty_counts_as_unset() -> None:
    options = resolve(
        {"host": None, "image": []}, {"KVMLAB_HOST": "", "KVMLAB": ""}, {"host": "", "image": []}
    )
    assert (options.host, options.image, options.lab) == ("auto", {}, False)


@pytest.mark.parametrize(("value", "on"), [("1", True), ("yes", True), ("0", False), ("FALSE", False)])
def test_the_environment_switches_the_lab_on(value: str, on: bool) -> None:
    assert resolve(None, {"KVMLAB": value}).lab is on


def test_the_switch_of_the_command_line_stands_alone() -> None:
    assert resolve({"lab": True}, {"KVMLAB": "0"}).lab is True


def test_images_are_listed_one_by_one() -> None:
    expected = {"a": Path("/x/a.raw"), "debian-12": Path("/y/b=c.qcow2")}
    assert resolve({"image": ["a=/x/a.raw", "debian-12=/y/b=c.qcow2"]}).image == expected
    assert resolve(None, {"KVMLAB_IMAGE": "a=/x/a.raw\ndebian-12=/y/b=c.qcow2\n"}).image == expected
    assert resolve(None, None, {"image": ["a=/x/a.raw", "debian-12=/y/b=c.qcow2"]}).image == expected


def test_numbers_and_folders_are_read() -> None:
    options = resolve({"timeout_scale": "2.5", "store": "/srv/images"})
    assert (options.timeout_scale, options.store) == (2.5, Path("/srv/images"))


@pytest.mark.parametrize(
    "host",
    ["auto", "private", "embed", "qemu:///system", "qemu:///session", "qemu+unix:///system?socket=/run/x"],
)
def test_a_local_host_is_accepted(host: str) -> None:
    assert resolve({"host": host}).host == host


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("qemu+ssh://db.example/system", "remote libvirt"),
        ("qemu+ssh:///system", "remote libvirt"),
        ("qemu+tls://db.example/system", "remote libvirt"),
        ("qemu+tcp://127.0.0.1/system", "remote libvirt"),
        ("qemu://db.example/system", "remote libvirt"),
        ("qemu+ext:///system?command=x", "remote libvirt"),
        ("xen:///system", "not the URI of a QEMU host"),
        ("test:///default", "not the URI of a QEMU host"),
        ("qemu:///embed?root=/x", "write 'embed'"),
        ("privat", "did you mean 'private'?"),
        ("/run/libvirt", "a local libvirt URI"),
        ("qemu:///system\n", "line break"),
    ],
)
def test_another_host_is_refused_with_the_reason(host: str, said: str) -> None:
    told = refusal({"host": host})
    assert told.startswith("command line option --kvm-host: ")
    assert said in told


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("KVMLAB_HOST", "embded", "environment variable KVMLAB_HOST: should be auto, private, embed or"),
        ("KVMLAB_ACCEL", "KVM", "should be auto, kvm or tcg"),
        ("KVMLAB_KEEP", "fail", "did you mean 'failed'?"),
        ("KVMLAB_TIMEOUT_SCALE", "0", "a number above zero"),
        ("KVMLAB_TIMEOUT_SCALE", "nan", "a number above zero"),
        ("KVMLAB_IMAGE", "debian-12", "should be NAME=PATH"),
        ("KVMLAB_IMAGE", "../x=/y", "never a path"),
        ("KVMLAB_IMAGE", "x=", "should be NAME=PATH"),
        ("KVMLAB_HOTS", "auto", "KVMLAB_HOTS: no such option (did you mean 'KVMLAB_HOST'?)"),
        ("KVMLAB", "2", "environment variable KVMLAB: should be 1 or 0"),
    ],
)
def test_a_wrong_environment_is_refused(variable: str, value: str, said: str) -> None:
    told = refusal(None, {variable: value})
    assert told.startswith(f"environment variable {variable}: ")
    assert said in told


def test_a_wrong_ini_key_is_named_as_one() -> None:
    assert refusal(None, None, {"keep": "ever"}).startswith(
        "ini key kvm_keep: should be never, failed or always"
    )


def test_other_variables_are_none_of_our_business() -> None:
    assert resolve(None, {"KVMLABX": "1", "HOME": "/root", "KVMLAB_RUNS": "/var/tmp/x"}).lab is False


def test_memory_is_written_with_its_unit() -> None:
    assert resolve({"memory": "1.5GiB"}).memory == 3 * 2**29
    assert resolve({"memory": "auto"}, {"KVMLAB_MEMORY": "1GiB"}).memory is None
    assert "KVMLAB_MEMORY: write a size with its unit" in refusal(None, {"KVMLAB_MEMORY": "4"})


@pytest.mark.parametrize("seconds", ["-1", "inf", "long"])
def test_a_wait_is_a_number_of_seconds(seconds: str) -> None:
    assert resolve(None, None, {"wait": "0"}).wait == 0
    assert f"ini key kvm_wait: should be a number of seconds, zero or more; found '{seconds}'" in refusal(
        None, None, {"wait": seconds}
    )


def test_a_pool_has_a_size_or_follows_from_the_machine() -> None:
    assert [resolve({"pool": text}).pool for text in ("auto", "0", "100")] == [None, 0, 100]
    for text in ("-1", "101", "1.5", "many"):
        assert "from 0 to 100" in refusal({"pool": text})


def test_a_way_to_a_clean_guest_is_one_that_there_is() -> None:
    assert [resolve({"reset": text}).reset for text in ("auto", "clone", "rewind", "boot")]
    assert "rewind" in refusal({"reset": "rewnd"})


def test_a_wrong_value_comes_with_what_the_option_is_for() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_options({"image": ["/srv/new.qcow2"]}, {}, {})
    assert caught.value.hint.startswith("--kvm-image=NAME=PATH: use this file wherever ")
