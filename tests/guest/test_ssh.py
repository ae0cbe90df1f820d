"""The SSH channel against a real OpenSSH server and a real dropbear, both on this machine's loopback.

Each server lives in a mount and PID namespace of its own (which takes root): it sees its own home
folder, and nothing that it started outlives it.
"""

import http.client
import http.server
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import paramiko
import pexpect
import pytest

from pytest_kvmlab.deadline import Deadline
from pytest_kvmlab.drivers.ssh import LEARN, Login, SshChannel, SshLost, SshNotReady
from pytest_kvmlab.drivers.ssh_connection import SshConnection
from pytest_kvmlab.drivers.ssh_keys import HostKey, KeyPair, generate_key_pair
from pytest_kvmlab.errors import CommandFailed, GuestError, WaitTimeout

_PASSWORD = "correct horse"  # noqa: S105 - lets into a server that lives for one test
_ANYBODY = Login("root", password=_PASSWORD)

_SSHD_CONFIG = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
PidFile none
UsePAM no
PermitRootLogin yes
PasswordAuthentication {password}
StrictModes no
LogLevel ERROR
Subsystem sftp internal-sftp
"""

_IN_NAMESPACE = """\
set -e
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/shadow" /etc/shadow
mount -t tmpfs tmpfs /run
mkdir /run/sshd
shift
exec "$@"
"""


@dataclass
class Server:
    """A running server, and who may log in."""

    port: int
    host: KeyPair
    user: KeyPair
    process: subprocess.Popen[bytes]

    def connect(self, timeout: float) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def channel(self, **changes: str) -> SshChannel:
        login = Login("root", changes.pop("private_key", self.user.private))
        return SshChannel("web", self.connect, login, host_key=changes.pop("host_key", self.host.public))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert found, f"{name} is not installed: ./lab test sees to that"
    return found


def _openssh(folder: Path, port: int, *, password: bool) -> list[str]:
    config = folder / "sshd_config"
    answer = "yes" if password else "no"
    config.write_text(_SSHD_CONFIG.format(port=port, folder=folder, password=answer))
    return [_program("sshd"), "-D", "-e", "-f", str(config)]


def _dropbear(folder: Path, port: int, *, password: bool) -> list[str]:
    converted = folder / "dropbear_host_key"
    command = ["dropbearconvert", "openssh", "dropbear", str(folder / "host_key"), str(converted)]
    subprocess.run(command, check=True, capture_output=True, timeout=20)
    listen = ["-p", f"127.0.0.1:{port}", "-P", f"{folder}/pid", "-r", str(converted)]
    return [_program("dropbear"), "-F", "-E", *([] if password else ["-s"]), *listen]


_SERVERS = {"openssh": _openssh, "dropbear": _dropbear}


def _furnish(folder: Path, host: KeyPair, user: KeyPair) -> None:
    """A home folder that lets the user's key in, and an account to go with it."""
    authorized = folder / "home" / ".ssh" / "authorized_keys"
    authorized.parent.mkdir(parents=True, mode=0o700)
    authorized.write_text(user.public + "\n")
    authorized.chmod(0o600)
    host.save(folder / "host_key")
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", _PASSWORD], check=True, capture_output=True, text=True, timeout=20
    ).stdout.strip()
    (folder / "passwd").write_text(
        f"root:x:0:0:root:{folder}/home:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
    )
    (folder / "shadow").write_text(f"root:{hashed}:19000:0:99999:7:::\n")


@contextmanager
def _serving(kind: str, folder: Path, *, password: bool = False) -> Iterator[Server]:
    host, user, port = generate_key_pair(), generate_key_pair(), _free_port()
    _furnish(folder, host, user)
    command = _SERVERS[kind](folder, port, password=password)
    isolate = ["unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*isolate, "sh", "-c", _IN_NAMESPACE, "sh", str(folder), *command], stdout=log, stderr=log
        )
    try:
        yield Server(port, host, user, process)
    finally:
        process.kill()
        process.wait(10)


def _open(channel: SshChannel) -> SshChannel:
    """Log in as soon as the server is up, as whoever waits for a boot does."""
    deadline = time.monotonic() + 15
    while True:
        try:
            channel.open(10)
        except SshNotReady:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return channel


@pytest.fixture(autouse=True)
def nothing_left_over(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Every test ends with the threads it began with, and without a word in anybody's log."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + 3
    while (left := set(threading.enumerate()) - before) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left
    assert not [record for when in ("setup", "call") for record in caplog.get_records(when)]


@pytest.fixture(scope="module", params=sorted(_SERVERS))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with _serving(request.param, tmp_path_factory.mktemp(request.param)) as server:
        probe = _open(server.channel())
        probe.close()
        yield server


@pytest.fixture
def ssh(server: Server) -> Iterator[SshChannel]:
    channel = _open(server.channel())
    yield channel
    channel.close()


@pytest.fixture(params=sorted(_SERVERS))
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server for one test alone, which may kill it."""
    with _serving(request.param, tmp_path) as server:
        yield server


# ---- opening ----


def test_a_wrong_host_key_is_refused_with_both_fingerprints(server: Server) -> None:
    other = generate_key_pair().public
    channel = server.channel(host_key=other)
    with pytest.raises(GuestError) as caught:
        channel.open(10)
    assert HostKey.parse(other).fingerprint in str(caught.value)
    assert HostKey.parse(server.host.public).fingerprint in str(caught.value)
    assert caught.value.phase == "ssh"
    assert not isinstance(caught.value, SshNotReady)
    assert not channel.connected


def test_a_host_key_is_learnt_once_and_then_pinned(server: Server, tmp_path: Path) -> None:
    channel = server.channel(host_key=LEARN)
    assert not channel.host_key
    _open(channel)
    assert channel.host_key == HostKey.parse(server.host.public).line
    with _serving("dropbear", tmp_path) as impostor:
        _open(impostor.channel()).close()
        channel._connect = impostor.connect
        with pytest.raises(GuestError, match="another host key"):
            channel.open(10)


def test_a_wrong_key_is_refused_with_user_and_ways_to_log_in(server: Server) -> None:
    channel = server.channel(private_key=generate_key_pair().private)
    with pytest.raises(GuestError, match="'root'") as caught:
        channel.open(10)
    assert "publickey" in str(caught.value)
    assert not isinstance(caught.value, SshNotReady)


@pytest.mark.parametrize("kind", sorted(_SERVERS))
def test_a_password_logs_in_and_a_wrong_one_does_not(kind: str, tmp_path: Path) -> None:
    with _serving(kind, tmp_path, password=True) as server:
        key = server.host.public
        right = _open(SshChannel("web", server.connect, Login("root", password=_PASSWORD), host_key=key))
        assert right.run("id -un").stdout == "root\n"
        right.close()
        wrong = SshChannel("web", server.connect, Login("root", password=_PASSWORD[::-1]), host_key=key)
        with pytest.raises(GuestError, match="password"):
            wrong.open(10)


def test_a_closed_port_is_not_ready_yet() -> None:
    port = _free_port()
    channel = SshChannel(
        "web", lambda _: socket.create_connection(("127.0.0.1", port)), _ANYBODY, host_key=LEARN
    )
    with pytest.raises(SshNotReady, match="takes no SSH connection"):
        channel.open(1)


@contextmanager
def _speaking(words: bytes, *, hang_up: bool) -> Iterator[Callable[[float], socket.socket]]:
    """A stand-in for a server that no real one can be brought to be: it says these words and no more."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as taken:

        def connect(timeout: float) -> socket.socket:
            client = socket.create_connection(listener.getsockname(), timeout)
            peer, _ = listener.accept()
            peer.sendall(words)
            taken.callback(peer.close)
            if hang_up:
                peer.close()
            return client

        yield connect


@pytest.mark.parametrize(
    ("words", "hang_up", "told"),
    [
        (b"", False, "said nothing for 0.3 s"),
        (b"", True, "hung up at once"),
        (b"SSH-2.0-half", True, "hung up during"),
        (b"SSH-2.0-silent\r\n", True, "hung up during"),
        (b"SSH-2.0-silent\r\n", False, "did not finish the SSH handshake in 1 s"),
    ],
)
def test_a_server_that_is_still_starting_is_not_ready_yet(words: bytes, hang_up: bool, told: str) -> None:
    with _speaking(words, hang_up=hang_up) as connect:
        channel = SshChannel("web", connect, _ANYBODY, host_key=LEARN)
        with pytest.raises(SshNotReady, match=told):
            channel.open(1, patience=0.3)


_NO_ALGORITHMS = b"SSH-2.0-x\r\n" + b"\0\0\0\x4c\x0a\x14" + bytes(74)


@pytest.mark.parametrize(
    "words", [b"SSH-1.5-old\r\n", b"\xff\xfe\r\n", b"SSH-2.0-x\r\n" + bytes(64), _NO_ALGORITHMS]
)
def test_what_will_never_be_our_kind_of_server_is_no_matter_of_waiting(words: bytes) -> None:
    with _speaking(words, hang_up=False) as connect:
        channel = SshChannel("web", connect, _ANYBODY, host_key=LEARN)
        with pytest.raises(GuestError, match="handshake with web failed") as caught:
            channel.open(5)
    assert not isinstance(caught.value, SshNotReady)


# ---- running ----


def test_a_command_gives_streams_status_and_duration(ssh: SshChannel) -> None:
    result = ssh.run("echo out; echo err >&2; exit 3")
    assert (result.stdout, result.stderr, result.exit_status) == ("out\n", "err\n", 3)
    assert 0 < result.duration < 5


def test_two_mebibytes_on_both_streams_do_not_block(ssh: SshChannel) -> None:
    result = ssh.run("head -c 2097152 /dev/zero; head -c 2097152 /dev/zero >&2", timeout=20)
    assert (len(result.stdout), len(result.stderr), result.exit_status) == (2 << 20, 2 << 20, 0)


def test_standard_input_reaches_the_command_while_it_prints(ssh: SshChannel) -> None:
    text = "ä line\n" * 300_000
    assert ssh.run("cat", stdin=text, timeout=20).stdout == text


def test_a_command_need_not_read_its_standard_input(ssh: SshChannel) -> None:
    assert ssh.run("exit 4", stdin=bytes(8 << 20), timeout=20).exit_status == 4


def test_without_standard_input_a_command_reads_its_end(ssh: SshChannel) -> None:
    assert ssh.run("cat; echo done", timeout=5).stdout == "done\n"


def test_unicode_comes_back_and_undecodable_bytes_are_replaced(ssh: SshChannel) -> None:
    assert ssh.run(r"printf 'grüße \377 %s' 漢").stdout == "grüße \ufffd 漢"


def test_a_command_ended_by_a_signal_has_status_minus_one(ssh: SshChannel) -> None:
    assert ssh.run("echo before; kill -9 $$").exit_status == -1
    assert ssh.run("true").ok


def test_a_background_process_does_not_keep_a_command_from_ending(ssh: SshChannel) -> None:
    result = ssh.run("sleep 1000 & echo started", timeout=20)
    assert (result.stdout, result.exit_status) == ("started\n", 0)
    assert result.duration < 5


def test_a_command_that_closes_its_streams_is_waited_for(ssh: SshChannel) -> None:
    assert ssh.run("exec >&- 2>&-; sleep 0.3; exit 5", timeout=10).exit_status == 5


@pytest.mark.parametrize("command", ["echo so far; sleep 1000", "exec >&- 2>&-; sleep 1000"])
def test_a_hanging_command_times_out_and_leaves_the_connection_usable(ssh: SshChannel, command: str) -> None:
    began = time.monotonic()
    with pytest.raises(WaitTimeout, match=r"sleep 1000' on web did not end within 0\.5 s") as caught:
        ssh.run(command, timeout=0.5)
    assert time.monotonic() - began < 2
    assert ("stdout so far: so far" in str(caught.value)) == command.startswith("echo")
    assert ssh.run("echo again").stdout == "again\n"


def test_a_command_that_prints_without_end_is_cut_off(ssh: SshChannel) -> None:
    with pytest.raises(CommandFailed, match="more than 64 MiB"):
        ssh.run("cat /dev/zero", timeout=60)
    assert ssh.run("true").ok


def test_a_command_cut_off_while_it_prints_leaves_the_connection_usable(ssh: SshChannel) -> None:
    for _ in range(10):
        with pytest.raises(WaitTimeout):
            ssh.run("cat /dev/zero", timeout=0.05)
        assert ssh.run("true").ok


def test_commands_run_side_by_side(ssh: SshChannel) -> None:
    seen: dict[int, str] = {}

    def run(number: int) -> None:
        seen[number] = ssh.run(f"sleep 0.2; echo {number}").stdout

    threads = [threading.Thread(target=run, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert seen == {number: f"{number}\n" for number in range(5)}


def test_many_commands_share_one_connection(
    ssh: SshChannel, record_property: Callable[[str, object], None]
) -> None:
    durations = [ssh.run("true").duration for _ in range(50)]
    record_property("round_trip_ms", round(statistics.median(durations) * 1000, 2))
    assert statistics.median(durations) < 0.03


def test_no_command_runs_twice_while_others_end(ssh: SshChannel, tmp_path: Path) -> None:
    """Old dropbears close a channel at the end of another one's process; paramiko then cannot tell why."""
    confirmed = refused = 0
    for _ in range(10):
        with suppress(WaitTimeout, GuestError):
            ssh.run("sleep 0.1", timeout=0.07)
        for _ in range(5):
            try:
                confirmed += ssh.run(f"echo ran >> {tmp_path}/ran").ok
            except GuestError:
                refused += 1
    ran = (tmp_path / "ran").read_text().count("ran")
    assert confirmed + refused == 50
    assert confirmed <= ran <= 50
    assert confirmed > 40
    assert ssh.connected


@pytest.mark.parametrize(("asked", "starts"), [(False, 3), (True, 1)])
def test_only_a_channel_that_was_asked_nothing_is_opened_anew(
    ssh: SshChannel, asked: bool, starts: int
) -> None:
    """What a dropbear does now and then is done here each time, by closing the channel ourselves."""
    seen = []

    def start(channel: paramiko.Channel) -> None:
        seen.append(channel)
        if asked:
            channel.exec_command("true")
            channel.recv_exit_status()  # another's end would close the next one
            raise paramiko.SSHException("Channel closed.")
        if len(seen) < 3:
            channel.close()
        channel.exec_command("true")

    connection = SshConnection(ssh.client, "web")
    with suppress(paramiko.SSHException), connection.session(start, Deadline(10)) as channel:
        assert channel.recv_exit_status() == 0
    assert len(seen) == starts
    assert ssh.run("true").ok


def test_transfers_and_commands_alternate(ssh: SshChannel, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(100_000))
    for _ in range(10):
        ssh.put(tmp_path / "source", f"{tmp_path}/there")
        assert ssh.run(f"wc -c < {tmp_path}/there").stdout.strip() == "100000"


def test_a_server_killed_during_a_command_is_a_lost_connection(own_server: Server) -> None:
    channel = _open(own_server.channel())
    killer = threading.Timer(0.3, own_server.process.kill)
    killer.start()
    with pytest.raises(SshLost, match="lost while running 'sleep 1000'"):
        channel.run("sleep 1000", timeout=20)
    assert not channel.connected
    with pytest.raises(SshLost, match="was lost"):
        channel.run("true")
    channel.close()
    with pytest.raises(SshLost, match="no SSH connection"):
        channel.run("true")


def test_a_frozen_server_holds_nobody_longer_than_the_deadline(own_server: Server) -> None:
    channel = _open(own_server.channel())
    with _frozen(own_server):
        for step in (
            partial(channel.run, "true", timeout=0.5),
            partial(channel.run, "cat", stdin=bytes(64 << 20), timeout=0.5),
            partial(channel.put, "/etc/passwd", "/tmp/x", timeout=0.5),
        ):
            began = time.monotonic()
            with pytest.raises((WaitTimeout, SshLost)):
                step()
            assert time.monotonic() - began < 5
        began = time.monotonic()
        channel.close()
        assert time.monotonic() - began < 3


@contextmanager
def _frozen(server: Server) -> Iterator[None]:
    """Stop every process of the server, as a paused guest stops."""
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
    children: dict[int, list[int]] = {}
    for pid, parent in (map(int, line.split()) for line in found.splitlines()):
        children.setdefault(parent, []).append(pid)
    family = [server.process.pid]
    for pid in family:
        family += children.get(pid, [])
    for pid in family[1:]:
        os.kill(pid, signal.SIGSTOP)
    yield


# ---- files ----


def test_a_file_of_five_mebibytes_goes_there_and_back(ssh: SshChannel, tmp_path: Path) -> None:
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(5 << 20))
    source.chmod(0o750)
    ssh.put(source, f"{tmp_path}/there")
    assert ssh.run(f"stat -c '%a %s' {tmp_path}/there").stdout == f"750 {5 << 20}\n"
    ssh.get(f"{tmp_path}/there", back)
    assert back.read_bytes() == source.read_bytes()


def test_a_file_without_a_size_is_read_to_its_end(ssh: SshChannel, tmp_path: Path) -> None:
    ssh.get("/proc/version", tmp_path / "version")
    assert (tmp_path / "version").read_text().startswith("Linux version")


def test_getting_a_missing_file_names_it_and_leaves_nothing(ssh: SshChannel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="web:/no/such/file"):
        ssh.get("/no/such/file", tmp_path / "local")
    assert not list(tmp_path.iterdir())


def test_getting_a_folder_is_an_error_that_names_it(ssh: SshChannel, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="web:/etc"):
        ssh.get("/etc", tmp_path / "local")
    assert not list(tmp_path.iterdir())


def test_putting_into_a_missing_folder_names_it(ssh: SshChannel, tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    with pytest.raises(FileNotFoundError, match="web:/no/such/folder/x"):
        ssh.put(tmp_path / "source", "/no/such/folder/x")


def test_putting_a_missing_file_names_the_local_one(ssh: SshChannel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "absent")):
        ssh.put(tmp_path / "absent", "/tmp/x")


def test_a_full_disk_in_the_guest_is_told(ssh: SshChannel, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(OSError, match="web:/dev/full"):
        ssh.put(tmp_path / "source", "/dev/full")


def test_getting_into_a_missing_folder_names_the_local_one(ssh: SshChannel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        ssh.get("/etc/passwd", tmp_path / "absent" / "x")


def test_a_file_without_end_is_cut_off_and_nothing_is_left(ssh: SshChannel, tmp_path: Path) -> None:
    with pytest.raises(WaitTimeout, match=r"/dev/zero' on web: no answer within 0\.5 s"):
        ssh.get("/dev/zero", tmp_path / "local", timeout=0.5)
    assert not list(tmp_path.iterdir())
    assert ssh.run("true").ok


# ---- ports, and the rest ----


@contextmanager
def _web_server(folder: Path) -> Iterator[int]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as web:
        thread = threading.Thread(target=web.serve_forever, args=(0.05,))
        thread.start()
        yield web.server_port
        web.shutdown()
        thread.join()


def _calling(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 5)


def _fetch(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_a_forwarded_port_reaches_a_service_of_the_guest(ssh: SshChannel, tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(b"hello " * 100_000)
    with _web_server(tmp_path) as guest_port, ssh.forward(guest_port) as forwarded:
        assert [_fetch(forwarded.port, "/page") for _ in range(3)] == [b"hello " * 100_000] * 3
    with pytest.raises(ConnectionRefusedError):
        _fetch(forwarded.port, "/page")


def test_a_forwarded_port_that_nobody_listens_on_hangs_up(ssh: SshChannel) -> None:
    with ssh.forward(_free_port()) as forwarded, _calling(forwarded.port) as client:
        assert client.recv(1) == b""
    assert ssh.run("true").ok


def test_closing_a_forwarded_port_cuts_its_connections(ssh: SshChannel) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        forwarded = ssh.forward(silent.getsockname()[1])
        with _calling(forwarded.port) as client, silent.accept()[0]:
            began = time.monotonic()
            forwarded.close()
            assert client.recv(1) == b""
            assert time.monotonic() - began < 2


def test_the_client_shares_the_connection(ssh: SshChannel) -> None:
    _, stdout, _ = ssh.client.exec_command("echo by hand")
    assert stdout.read() == b"by hand\n"
    ssh.close()
    with pytest.raises(SshLost):
        _ = ssh.client


_SHELL = """\
import socket, sys
from pathlib import Path
from pytest_kvmlab.drivers.ssh import SshChannel
from pytest_kvmlab.drivers.ssh_login import Login
port, key = int(sys.argv[1]), Path(sys.argv[2]).read_text()
ssh = SshChannel("web", lambda s: socket.create_connection(("127.0.0.1", port), s), Login("root", key),
                 host_key="learn")
ssh.open(10)
sys.exit(ssh.interact())
"""


def test_a_person_can_work_in_a_shell(server: Server, tmp_path: Path) -> None:
    server.user.save(tmp_path / "key")
    arguments = ["-c", _SHELL, str(server.port), str(tmp_path / "key")]
    terminal = pexpect.spawn(sys.executable, arguments, timeout=10, dimensions=(30, 90), encoding="utf-8")
    terminal.expect("# ")
    terminal.sendline("stty size; echo answer $((6 * 7))")
    terminal.expect("30 90\r\nanswer 42\r\n")
    terminal.setwinsize(40, 100)
    terminal.sendline("sleep 0.2; stty size")
    terminal.expect("40 100\r\n")
    terminal.sendline("sleep 1000")
    terminal.expect("sleep 1000\r\n")
    time.sleep(0.3)  # until the shell has started it, and so does not get the key itself
    terminal.sendintr()
    terminal.expect("# ")
    terminal.sendline("exit 7")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 7
