"""The libvirt daemon of a private host: its program, files and places. Decides; starts nothing."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from pytest_kvmlab.errors import HostError

# libvirtd is one daemon for everything; newer distributions ship one per driver (libvirt.org/daemons.html).
_PROGRAMS = ("libvirtd", "virtqemud")
_SBIN = "/usr/sbin:/sbin:/usr/local/sbin"


@dataclass(frozen=True)
class LibvirtDaemon:
    """Where one private libvirt daemon lives.

    Attributes:
        program: `libvirtd` or `virtqemud`.
        executable: its full path.
        folder: the run's folder, below which all of its files are.
        privileged: whether it runs as root, so with system paths; else with the user's (XDG) ones.
    """

    program: str
    executable: str
    folder: Path
    privileged: bool
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def socket(self) -> Path:
        """Where it listens; on a file system that the whole host sees."""
        name = f"{self.program.replace('libvirtd', 'libvirt')}-sock"
        return self.folder / "sock" / name if self.privileged else self.folder / "xdg" / "libvirt" / name

    @property
    def uri(self) -> str:
        """How a client reaches it (libvirt.org/uri.html, transport `unix`)."""
        mode = "system" if self.privileged else "session"
        return f"qemu+unix:///{mode}?socket={self.socket}"

    @property
    def configuration(self) -> Path:
        """The daemon's configuration file."""
        return self.folder / "etc" / f"{self.program}.conf"

    @property
    def output(self) -> Path:
        """What the daemon prints."""
        return self.folder / "libvirt.log"

    @property
    def warnings(self) -> Path:
        """What the daemon logs."""
        return self.folder / "libvirt-warnings.log"

    @property
    def command(self) -> list[str]:
        """The command line.

        As root it runs with few capabilities, which QEMU inherits (setpriv(1), capabilities(7)).
        """
        pid_file = str(self.folder / f"{self.program}.pid")
        plain = [self.executable, "--config", str(self.configuration), "--pid-file", pid_file]
        return [*_FEWER_CAPABILITIES, *plain] if self.privileged else plain

    def files(self) -> dict[Path, str]:
        """Configuration files and their content."""
        qemu = self.folder / "etc" if self.privileged else self.folder / "conf" / "libvirt"
        return {
            self.configuration: _DAEMON_CONF.format(log=self.warnings) + self._sockets(),
            qemu / "qemu.conf": _QEMU_CONF + (_QEMU_CONF_ROOT if self.privileged else ""),
        }

    def _sockets(self) -> str:
        return f'unix_sock_dir = "{self.folder}/sock"\nauth_unix_rw = "none"\n' if self.privileged else ""

    def directories(self) -> list[Path]:
        """Directories that it expects to find."""
        if self.privileged:
            return [self.folder / "sock"]
        # With stdio_handler = "file" the session daemon does not make its log directory itself.
        return [self.folder / "xdg" / "libvirt", self.cache / "qemu" / "log"]

    @property
    def cache(self) -> Path:
        """Its cache directory."""
        return self.folder / "cache" if self.privileged else self.folder / "xdg" / "cache" / "libvirt"

    def covered_directories(self) -> dict[Path, Path]:
        """System directories that the daemon writes to, and what covers them inside the namespace."""
        return {Path(system): self.folder / private for system, private in _SYSTEM.items() if self.privileged}

    def covered_files(self) -> dict[Path, str]:
        """System files that are read with more lines inside the namespace.

        libvirt refuses to start as root where its QEMU user is unknown, even if told to use another one.
        """
        return dict(_ACCOUNTS) if self.privileged else {}


_KEPT = "chown dac_override fowner kill setgid setuid setpcap net_bind_service net_admin net_raw sys_nice"
_FEWER_CAPABILITIES = (
    "setpriv",
    "--bounding-set",
    ",".join(["-all", *(f"+{name}" for name in _KEPT.split())]),
    "--",
)

_SYSTEM = {
    "/var/log/swtpm": "swtpm-log",
    "/var/lib/swtpm-localca": "swtpm-ca",
    "/etc/libvirt": "etc",
    "/var/lib/libvirt": "lib",
    "/var/log/libvirt": "log",
    "/var/cache/libvirt": "cache",
    "/run/libvirt": "run",
}

# The names and numbers that Debian reserves for libvirt's QEMU processes.
_ACCOUNTS = {
    Path("/etc/passwd"): "libvirt-qemu:x:64055:64055:QEMU:/nonexistent:/usr/sbin/nologin\n",
    Path("/etc/group"): "libvirt-qemu:x:64055:\nkvm:x:64056:\n",
}

_DAEMON_CONF = """\
log_level = 3
log_outputs = "3:file:{log}"
max_clients = 512
max_workers = 32
"""

_QEMU_CONF = """\
stdio_handler = "file"
security_driver = "none"
"""

# As root libvirt would switch QEMU to a user of its own, change the owners of base images to that user and
# remember the old ones in extended attributes; none of that may happen to files which are not ours. It would
# also make a folder below /dev/hugepages, which most hosts have and which is read-only here, and not start.
_QEMU_CONF_ROOT = """\
user = "+0"
group = "+0"
dynamic_ownership = 0
remember_owner = 0
hugetlbfs_mount = []
namespaces = []
swtpm_user = "root"
swtpm_group = "root"
cgroup_controllers = []
"""


def find_daemon(folder: Path) -> LibvirtDaemon:
    """Choose the libvirt daemon of this machine.

    Args:
        folder: the run's folder.

    Returns:
        The daemon, with every path below `folder`.

    Raises:
        HostError: no libvirt daemon is installed.
    """
    privileged = os.geteuid() == 0
    for program in _PROGRAMS:
        if executable := shutil.which(program) or shutil.which(program, path=_SBIN):
            return LibvirtDaemon(program, executable, folder, privileged, _environment(folder, privileged))
    raise HostError(
        "no libvirt daemon is installed",
        "install it (Debian: apt install libvirt-daemon libvirt-daemon-driver-qemu)",
        check="libvirt",
        looked_at=_PROGRAMS,
    )


def share_capabilities(cache: Path, shared: Path) -> None:
    """Let a libvirt remember across runs what it found out about QEMU, which takes it a second.

    Args:
        cache: the cache directory of one libvirt.
        shared: a folder that outlives runs. libvirt itself checks whether what lies there still holds.
    """
    shared.mkdir(parents=True, exist_ok=True)
    (cache / "qemu").mkdir(parents=True, exist_ok=True)
    (cache / "qemu" / "capabilities").symlink_to(shared)


def embedded_files(root: Path) -> dict[Path, str]:
    """Configuration that the embedded driver needs below its root before it is opened.

    See libvirt.org/drvqemu.html.

    Args:
        root: the absolute folder given as `root=` in its URI.
    """
    return {root / "etc" / "qemu.conf": _QEMU_CONF + (_QEMU_CONF_ROOT if os.geteuid() == 0 else "")}


def _environment(folder: Path, privileged: bool) -> dict[str, str]:
    """The places of the user's files; as root, no way to the host's systemd.

    libvirt would register each guest with systemd-machined, by the number that QEMU has in the namespace.
    """
    if privileged:
        return {"DBUS_SYSTEM_BUS_ADDRESS": f"unix:path={folder}/no-bus"}
    places = {"XDG_RUNTIME_DIR": "xdg", "XDG_CONFIG_HOME": "conf", "XDG_CACHE_HOME": "xdg/cache",
              "XDG_DATA_HOME": "xdg/data"}  # fmt: skip
    return {name: str(folder / place) for name, place in places.items()}
