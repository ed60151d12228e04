"""`python -m ironworks.metald.purge`: remove all that metald has made on this host for VMs.

For a data directory whose platform is not running and will not run again: every VM of it is killed.
While metald runs, its own reconciler removes leftovers, and only those.
"""

import asyncio
import sys

from ironworks.metald.cgroup.groups import HostGroups
from ironworks.metald.jail_directories import JailDirectories
from ironworks.metald.network.slots import HostNetwork
from ironworks.metald.settings import MetaldSettings
from ironworks.model.errors import IronError
from ironworks.runtime.cgroup_layout import read_layout
from ironworks.runtime.clock import SystemClock
from ironworks.runtime.settings import load, tag_of


async def purge(settings: MetaldSettings) -> None:
    """Kill and remove everything; safe to repeat.

    Raises:
        IronError: something does not go; says what.
    """
    tag = tag_of(settings.data_dir)
    groups = HostGroups(read_layout(), tag, SystemClock())
    # The cgroup first: with it go the processes that hold all else.
    for vm_id in await groups.present():
        await groups.remove(vm_id)
    network = HostNetwork(tag)
    for slot in await network.present():
        await network.remove(slot)
    await network.drain()
    jails = JailDirectories(settings.jails_dir, settings.consoles_dir, settings.console_max_bytes)
    for vm_id in await jails.present():
        await jails.remove(vm_id)


def main() -> None:
    """Entry point."""
    try:
        asyncio.run(purge(load(MetaldSettings)))
    except IronError as error:
        sys.stderr.write(f"metald purge: {error}\n")
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
