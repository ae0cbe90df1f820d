"""The serial console against real shells on real terminals."""

import re
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_kvmlab.drivers.echo import HIDDEN
from pytest_kvmlab.drivers.serial import SerialConsole
from pytest_kvmlab.drivers.testinfra import testinfra_host as make_testinfra_host
from pytest_kvmlab.errors import ConfigError, GuestError, SerialMismatch, WaitTimeout
from tests.guest.serial_lines import SHELLS, Terminal, terminal

NASTY = "a 'b' \"c\" \\ $d `e` !f *\t~é€𝄞\x1b[31m\x03\x04"


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Terminal, SerialConsole]]:
    with terminal(SHELLS[request.param], tmp_path) as pair:
        yield pair


@pytest.fixture
def serial(shell: tuple[Terminal, SerialConsole]) -> SerialConsole:
    return shell[1]


@pytest.fixture
def dash(tmp_path: Path) -> Iterator[tuple[Terminal, SerialConsole]]:
    with terminal(SHELLS["dash"], tmp_path) as pair:
        yield pair


@pytest.mark.parametrize(
    ("command", "status", "output"),
    [
        ("true", 0, ""),
        ("exit 3", 3, ""),
        ("exec echo replaced", 0, "replaced\n"),
        ("kill -9 $$", 137, ""),
        ("no-such-program 2>/dev/null", 127, ""),
        ("echo out; echo err >&2", 0, "out\nerr\n"),
        ("printf 'no newline'", 0, "no newline"),
        ("cat; echo $?", 0, "0\n"),
        ("read -r line || echo nothing to read", 0, "nothing to read\n"),
        ("for i in 1 2\ndo echo $i\ndone\n", 0, "1\n2\n"),
        ("cat <<'END'\nit's\nEND", 0, "it's\n"),
        ("printf 'a\\000b\\r\\n'", 0, "a\0b\r\n"),
        (r"printf '\377\303\251'", 0, "\N{REPLACEMENT CHARACTER}é"),
        (r"printf '\033[?2004h\033[6n\033[2J'", 0, "\x1b[?2004h\x1b[6n\x1b[2J"),
        ("echo '[    1.234567] usb 1-1: new device'", 0, "[    1.234567] usb 1-1: new device\n"),
    ],
)
def test_output_and_status_arrive_as_they_were(
    serial: SerialConsole, command: str, status: int, output: str
) -> None:
    result = serial.run(command, timeout=20)
    assert (result.exit_status, result.stdout, result.stderr) == (status, output, "")


def test_every_character_of_a_command_arrives(serial: SerialConsole) -> None:
    quoted = NASTY.replace("'", "'\\''")
    assert serial.run(f"printf %s '{quoted}'").stdout == NASTY


def test_a_command_may_be_longer_than_a_terminals_line(serial: SerialConsole) -> None:
    words = " ".join(f"w{number}é" for number in range(1500))
    assert serial.run(f"echo '{words}'").stdout == f"{words}\n"


def test_a_megabyte_arrives_unchanged(serial: SerialConsole) -> None:
    assert serial.run("seq 150000").stdout == "".join(f"{number}\n" for number in range(1, 150001))


@pytest.mark.parametrize("size", [2047, 2048, 4096, 24 * 4096, 24 * 4096 + 1])
def test_an_output_of_any_size_is_whole(dash: tuple[Terminal, SerialConsole], size: int) -> None:
    assert dash[1].run(f"head -c {size} /dev/zero").stdout == "\0" * size


def test_an_output_may_look_like_an_answer(serial: SerialConsole) -> None:
    serial.run("true")
    forged = f":{serial._shell._session}:h:2:1:3: 41:\n"
    assert serial.run(f"echo '{forged}'").stdout == f"{forged}\n"


def test_a_background_job_neither_holds_the_line_nor_disturbs_it(serial: SerialConsole) -> None:
    result = serial.run("(sleep 0.3; echo later) & echo now", timeout=20)
    assert (result.stdout, result.duration < 0.3) == ("now\n", True)
    assert serial.run("sleep 0.5; echo next").stdout == "next\n"


def test_commands_do_not_share_a_shell(serial: SerialConsole) -> None:
    serial.run("cd /; variable=kept")
    assert serial.run("echo ${variable-lost}; [ $PWD != / ]").stdout == "lost\n"
    assert serial.run("[ $PWD != / ]").ok


def test_a_command_that_is_run_at_once_leaves_the_shell_on_the_line_as_it_is(serial: SerialConsole) -> None:
    result = serial.run_at_once("cd /; variable=kept; echo 'out'; echo err >&2; exit 3", timeout=20)
    assert (result.stdout, result.exit_status) == ("out\nerr\n", 3)
    assert serial.run_at_once("echo ${variable-lost}; [ $PWD != / ]", timeout=20).stdout == "lost\n"
    assert serial.run_at_once("exec sh -c 'kill -9 $$'", timeout=20).exit_status == 137
    many = " ".join(f"w{number}é" for number in range(300))
    assert serial.run_at_once(f"echo '{many}'", timeout=20).stdout == f"{many}\n"
    assert serial.run("cat; echo next").stdout == "next\n"


@pytest.mark.parametrize("message", ["[   12.345678] eth0: link is up\r\n", "random: crng init done\r\n"])
def test_kernel_messages_disturb_no_output_but_stay_in_the_log(
    shell: tuple[Terminal, SerialConsole], message: str
) -> None:
    far, serial = shell
    done = threading.Event()

    def kernel() -> None:
        while not done.wait(0.01):
            far.print(message)

    printer = threading.Thread(target=kernel)
    printer.start()
    try:
        result = serial.run("head -c 150000 /dev/urandom | od -An -v -tx1 | tee copy; sleep 0.1", timeout=30)
    finally:
        done.set()
        printer.join()
    assert result.stdout == serial.run("cat copy", timeout=30).stdout
    assert message.strip() in serial.log


@pytest.mark.parametrize("direction", ["input", "output"])
def test_a_command_runs_once_though_the_line_loses_something(
    shell: tuple[Terminal, SerialConsole], direction: str
) -> None:
    far, serial = shell
    serial.run("true")
    far.lose = direction
    assert serial.run("echo ran >>count; echo done", timeout=20).stdout == "done\n"
    assert serial.run("cat count").stdout == "ran\n"


def test_a_part_of_a_long_command_is_sent_again_if_it_was_lost(dash: tuple[Terminal, SerialConsole]) -> None:
    far, serial = dash
    serial.run("true")
    far.lose = "input"
    assert serial.run(f"echo {'x' * 5000}", timeout=20).stdout == "x" * 5000 + "\n"


def test_a_command_that_takes_too_long_is_interrupted_and_the_line_recovers(serial: SerialConsole) -> None:
    with pytest.raises(WaitTimeout, match=r"after 0\.5 s .*\n.*\nso far$"):
        serial.run("echo so far; sleep 60", timeout=0.5)
    assert serial.run("echo again").stdout == "again\n"


def test_a_command_that_cannot_be_interrupted_breaks_the_line_for_good(
    dash: tuple[Terminal, SerialConsole],
) -> None:
    serial = dash[1]
    with pytest.raises(WaitTimeout, match="did not come back"):
        serial.run("trap '' INT QUIT; sleep 20", timeout=0.5)
    with pytest.raises(GuestError, match="earlier command that took too long") as broken:
        serial.run("true")
    assert broken.value.phase == "serial"


def test_a_guest_that_goes_away_is_an_error_of_the_guest(dash: tuple[Terminal, SerialConsole]) -> None:
    far, serial = dash
    serial.run("true")
    threading.Timer(0.2, far.unplug).start()
    with pytest.raises(GuestError, match="serial line has ended") as gone:
        serial.run("sleep 20", timeout=30)
    assert gone.value.phase == "serial"


def test_a_guest_that_never_answers_is_an_error_of_the_guest(tmp_path: Path) -> None:
    with (
        terminal(("sleep", "60"), tmp_path) as (_, serial),
        pytest.raises(GuestError, match="no shell answered"),
    ):
        serial.run("true", timeout=1)


def test_a_login_prompt_is_named_as_the_reason(tmp_path: Path) -> None:
    with terminal(("dash", "-c", "printf 'guest login: '; sleep 60"), tmp_path) as (_, serial):
        serial.expect("login: ", timeout=5)
        with pytest.raises(GuestError, match="shows a login prompt"):
            serial.run("true", timeout=5)


def test_a_login_prompt_that_comes_late_is_named_too(tmp_path: Path) -> None:
    with (
        terminal(("dash", "-c", "sleep 2; printf 'guest login: '; sleep 60"), tmp_path) as (_, serial),
        pytest.raises(GuestError, match="shows a login prompt"),
    ):
        serial.run("true", timeout=4)


# It takes what was typed before its prompt for a name and a password, and thinks about it for $1 seconds.
SLOW_GETTY = """
sleep 2.5
while printf '\nguest login: '; read -r name; do
    printf 'Password: '; stty -echo; read -r word; stty echo; echo
    [ "$name $word" = "tester tops3cret" ] && exec dash -i
    sleep $1; echo 'Login incorrect'
done
"""


@pytest.mark.parametrize("thinks", [1, 3, 6])
def test_a_slow_getty_refuses_the_question_for_a_shell_and_then_lets_the_user_in(
    tmp_path: Path, thinks: int
) -> None:
    with terminal(("dash", "-c", SLOW_GETTY, "getty", str(thinks)), tmp_path) as (_, serial):
        serial.login("tester", "tops3cret", timeout=60)
        assert serial.run("echo $name").stdout == "\n"
        assert "Login incorrect" in serial.log


def test_a_login_prompt_that_was_expected_is_answered_at_once(tmp_path: Path) -> None:
    with terminal(("dash", "-c", SLOW_GETTY, "getty", "3"), tmp_path) as (_, serial):
        serial.expect("login: ", timeout=10)
        serial.login("tester", "tops3cret", timeout=10)
        assert "incorrect" not in serial.log


def test_a_slow_getty_that_refuses_the_user_is_told_from_one_that_refuses_a_question(tmp_path: Path) -> None:
    with terminal(("dash", "-c", SLOW_GETTY, "getty", "3"), tmp_path) as (_, serial):
        with pytest.raises(GuestError, match="login of 'tester' on the serial line was refused"):
            serial.login("tester", "wrong", timeout=60)
        assert re.search(r"login: tester\s+Password:\s+Login incorrect\s*(\nguest login: )?$", serial.log)


@pytest.mark.parametrize("echo", ["stty -echo", "sleep 0.1; stty -echo", "true"])
def test_a_password_is_not_in_the_log_however_slow_the_guest_is_to_hide_it(tmp_path: Path, echo: str) -> None:
    name = "printf 'guest login: '; read -r name"
    password = f"printf 'Password: '; {echo}; read -r word; echo; stty echo"
    greeting = 'echo "the word has ${#word} letters"; exec dash -i'
    with terminal(("dash", "-c", f"{name}; {password}; {greeting}"), tmp_path) as (_, serial):
        serial.login("tester", "tops3cret", timeout=20)
        assert "the word has 9 letters" in serial.log
        assert "tops3cret" not in serial.log + (tmp_path / "console.log").read_text()
        assert (HIDDEN.decode() in serial.log) == (echo == "true")


def test_typing_and_running_take_turns(serial: SerialConsole) -> None:
    assert serial.run("echo one").stdout == "one\n"
    serial.sendline("variable=typed; echo X$((1+1))")
    assert serial.expect("X(2)", timeout=10)[1] == "2"
    assert serial.run("echo two").stdout == "two\n"
    serial.sendline("echo $variable:")
    serial.expect("typed:", timeout=10)


def test_what_a_command_made_the_kernel_print_can_be_expected(shell: tuple[Terminal, SerialConsole]) -> None:
    far, serial = shell
    serial.run("true")
    far.print("usb 1-1: old device\r\n")
    serial.expect("old device", timeout=5)
    serial.run("echo 'usb 1-1: new device' >/dev/tty")
    assert serial.expect(re.compile(r"usb (\S+): new device"), timeout=5)[1] == "1-1"


def test_a_mismatch_shows_the_pattern_and_the_last_lines_harmlessly(tmp_path: Path) -> None:
    program = ("dash", "-c", r"printf 'first\n\033[2Jlast'; sleep 60")
    told = r"did not show 'absent' within 0\.3 s"
    with terminal(program, tmp_path) as (_, serial), pytest.raises(SerialMismatch, match=told) as mismatch:
        serial.expect("absent", timeout=0.3)
    assert str(mismatch.value).endswith("first\n\\x1b[2Jlast")


def test_a_terminal_without_echo_changes_nothing(tmp_path: Path) -> None:
    with terminal(("dash", "-c", "stty -echo; exec dash -i"), tmp_path) as (_, serial):
        assert serial.run("echo heard").stdout == "heard\n"


def test_a_shell_with_strict_options_serves_too(serial: SerialConsole) -> None:
    serial.sendline("set -u -C -f; IFS=:")
    assert serial.run("echo heard; seq 3 | wc -l").stdout == "heard\n3\n"
    assert serial.run("head -c 5000 /dev/zero | wc -c").stdout == "5000\n"


def test_what_the_guest_lacks_is_named(tmp_path: Path) -> None:
    bare = f"PATH=/nowhere TMPDIR=/nowhere; exec {shutil.which('dash')} -i"
    lacking = pytest.raises(GuestError, match="lacks: od, dd, gzip, base64, folder")
    with terminal(("dash", "-c", bare), tmp_path) as (_, serial), lacking:
        serial.run("true", timeout=10)


def test_testinfra_asks_the_guest(serial: SerialConsole) -> None:
    host = make_testinfra_host(serial.run)
    assert host.file("/etc/passwd").contains("^root:")
    assert host.check_output("printf %s", "a 'b'") == "a 'b'"
    assert host.run("exit 4").rc == 4


def test_testinfra_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "testinfra.host", None)
    with pytest.raises(ConfigError, match=r"pip install 'pytest-kvmlab\[testinfra\]'"):
        make_testinfra_host(lambda command: pytest.fail(f"ran {command}"))
