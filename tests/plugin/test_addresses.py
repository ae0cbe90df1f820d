"""Addresses that were planned are looked for in a guest that is ready; one that has others is told."""

import pytest

from tests.plugin.project import Project, section_of

LAB = """
[network.campus]
mode = "nat"
subnet = "10.77.0.0/24"

[guest.web]
image = "micro"
networks = [{ name = "campus", mac = "52:54:00:12:34:68"%(address)s }]
login = { user = "root", channel = "%(channel)s" }
ready = "%(ready)s"
"""
# What a guest does by itself after it was given its address.
ITSELF = "test -e /run/settled && ip address flush dev eth0 && ip address add %s dev eth0"
WRITTEN = ', address = "10.77.0.10"'
LABS = {
    "written": {"address": WRITTEN, "ready": ITSELF % "192.168.50.1/24"},
    "chosen": {"address": "", "ready": ITSELF % "10.77.0.50/24"},
    "beside": {"address": WRITTEN, "ready": "ip address add 10.77.0.50/24 dev eth0"},
    "outside": {"address": "", "ready": ITSELF % "192.168.50.1/24"},
    "without": {"address": WRITTEN, "ready": "test -e /run/settled && ip address flush dev eth0"},
    "mute": {"address": WRITTEN, "ready": "console:micro: ready", "channel": "none"},
}
TESTS = """
import pytest

LABS = [pytest.param(name, marks=pytest.mark.kvm(lab=f"{name}.lab.toml"), id=name) for name in %r]

@pytest.mark.parametrize("name", LABS)
def test(guest, name): ...
"""


@pytest.fixture(scope="module")
def ran(module_project: Project) -> pytest.RunResult:
    """One run of a test with a guest of each lab."""
    for name, keys in LABS.items():
        module_project.write(f"{name}.lab.toml", LAB % {"channel": "serial", **keys})
    module_project.write("test_it.py", TESTS % list(LABS))
    return module_project.pytest("--kvm-lab", "--kvm-host=private", "--kvm-reset=boot", "-rA")


@pytest.mark.parametrize(
    ("lab", "found", "planned"),
    [("written", "192.168.50.1", "10.77.0.10"), ("chosen", "10.77.0.50", "10.77.0.2")],
)
def test_a_guest_with_another_address_than_the_one_of_the_plan_is_told_with_both(
    ran: pytest.RunResult, lab: str, found: str, planned: str
) -> None:
    told = section_of(str(ran.stdout), f"test[{lab}]")
    wrong = f"has the address {found}, and was to have {planned}"
    assert f"GuestError: web: card 0 (52:54:00:12:34:68) in network 'campus' {wrong}" in told
    assert f'{{ name = "campus", address = "{found}" }}' in told


@pytest.mark.parametrize("lab", ["beside", "outside", "without", "mute"])
def test_a_guest_that_makes_its_own_plans_or_cannot_be_asked_is_left_alone(
    ran: pytest.RunResult, lab: str
) -> None:
    ran.stdout.fnmatch_lines([f"PASSED test_it.py::test[[]{lab}]"])
