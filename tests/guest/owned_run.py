"""A process that owns a run with one guest, without pytest: `python -m tests.guest.owned_run HOST`.

Prints the run's folder once the guest is there, and ends the run when its standard input ends.
"""

import os
import sys

from pytest_kvmlab.keeper.client import Keeper
from pytest_kvmlab.lab.hosts import choose_host, open_host
from pytest_kvmlab.lab.run import capabilities_folder
from pytest_kvmlab.spec.options import resolve_options

_GUEST = """
<domain type='qemu'>
  <name>kvl-{run}-idle</name><memory unit='MiB'>16</memory>
  <os><type machine='microvm'>hvm</type></os>
  <devices><controller type='usb' model='none'/><memballoon model='none'/></devices>
</domain>
"""


def main() -> None:
    choice = choose_host(sys.argv[1])
    capabilities = capabilities_folder(resolve_options({"lab": True}, os.environ, {}))
    keeper = Keeper({"command": ["owned_run"]}, capabilities=capabilities if choice.private else None)
    host = open_host(choice, keeper.folder, worker="main", capabilities=capabilities)
    host.connection.create(_GUEST.format(run=keeper.folder.run), autodestroy=host.autodestroy)
    sys.stdout.write(f"{keeper.folder.path}\n")
    sys.stdout.flush()
    sys.stdin.read()
    host.close()
    keeper.close()


if __name__ == "__main__":
    main()
