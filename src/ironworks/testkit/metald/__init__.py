"""metald in a test: its use cases on a real store, with a machine in memory or the real one."""

from ironworks.testkit.metald.around import FailAt as FailAt
from ironworks.testkit.metald.around import MemoryGroups as MemoryGroups
from ironworks.testkit.metald.around import MemoryLessor as MemoryLessor
from ironworks.testkit.metald.around import MemoryNetwork as MemoryNetwork
from ironworks.testkit.metald.around import MemorySampler as MemorySampler
from ironworks.testkit.metald.values import INITRD as INITRD
from ironworks.testkit.metald.values import KERNEL as KERNEL
from ironworks.testkit.metald.values import LIMITS as LIMITS
from ironworks.testkit.metald.values import OTHER_TENANT as OTHER_TENANT
from ironworks.testkit.metald.values import ROOTFS as ROOTFS
from ironworks.testkit.metald.values import TENANT as TENANT
from ironworks.testkit.metald.values import vm_spec as vm_spec
from ironworks.testkit.metald.vmm import MemoryDriver as MemoryDriver
from ironworks.testkit.metald.vmm import MemoryHandle as MemoryHandle
from ironworks.testkit.metald.vmm import MemoryVmm as MemoryVmm
from ironworks.testkit.metald.world import World as World
from ironworks.testkit.metald.world import world as world
