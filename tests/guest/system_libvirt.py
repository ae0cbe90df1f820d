"""A libvirt for the whole machine, not configured: `python -m tests.guest.system_libvirt FOLDER CACHE`.

Runs as root in mount, network and PID namespaces that were made for it, with all its files below FOLDER.
Its QEMU has a user of its own. CACHE is where another libvirt wrote down what QEMU can do.
"""

import os
import subprocess
import sys
from pathlib import Path

from pytest_kvmlab.keeper.daemon import share_capabilities
from pytest_kvmlab.keeper.mounts import bind, cover
from pytest_kvmlab.keeper.private_host import _raise_loopback

ACCOUNTS = {
    Path("/etc/passwd"): "libvirt-qemu:x:64055:64055:QEMU:/nonexistent:/usr/sbin/nologin\n",
    Path("/etc/group"): "libvirt-qemu:x:64055:\nkvm:x:64056:\n",
}
DIRECTORIES = ("/etc/libvirt", "/var/lib/libvirt", "/var/log/libvirt", "/var/cache/libvirt", "/run/libvirt")
DAEMON = """\
auth_unix_rw = "none"
unix_sock_rw_perms = "0777"
unix_sock_dir = "{folder}/sock"
log_outputs = "3:file:{folder}/libvirtd.log"
"""
# The machine's control groups are none of a test's business.
QEMU = 'stdio_handler = "file"\ncgroup_controllers = []\n'


def main() -> None:
    folder = Path(sys.argv[1])
    _raise_loopback()
    for directory in DIRECTORIES:
        private = folder / directory.strip("/").replace("/", "-")
        private.mkdir()
        cover(Path(directory), private, keep=frozenset())
    share_capabilities(folder / "var-cache-libvirt", Path(sys.argv[2]))
    for system, more in ACCOUNTS.items():
        private = folder / system.name
        private.write_text(f"{system.read_text().rstrip()}\n{more}")
        bind(private, system)
    (folder / "sock").mkdir()
    configuration = folder / "etc-libvirt" / "libvirtd.conf"
    configuration.write_text(DAEMON.format(folder=folder))
    (folder / "etc-libvirt" / "qemu.conf").write_text(QEMU)
    libvirtd = subprocess.Popen(["libvirtd", "--config", configuration, "--pid-file", folder / "pid"])
    while os.wait()[0] != libvirtd.pid:  # this is PID 1, and libvirtd waits for orphans of its to be gone
        pass


if __name__ == "__main__":
    main()
