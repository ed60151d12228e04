"""The Firecracker driver: KVM only, jailed by Firecracker's own jailer.

One VM is one Firecracker, made like this:

    metald ─ starts ─► keeper ─► unshare ─► jailer ─► firecracker
                       cgroup    ipc, uts,   chroot, network and pid namespace, uid, gid
                       console   cgroup

- The chroot is `jail/<program>/<id>/root` in the VM's directory. The driver lays it out: the kernel
  unpacked to an ELF, initrd, rootfs (hard links, root's and read-only), the config disk, two FIFOs.
  The jailer adds the program and the device nodes; all of it is the driver's to remove.
- The API is asked for its version first; what a version does not know is not sent to it.
- The serial console is Firecracker's standard output, which the keeper bounds. Its log and its
  metrics are FIFOs, drained here for as long as metald runs, and bounded by the pipe otherwise.
- Metrics are deltas since the last flush. Their sums stand in `counters` in the VM's directory, so
  that a metald that restarts goes on counting where it stopped.
- The guest's init connects to the host over vsock, which is a unix socket here.
- On x86 a guest ends its Firecracker by a reboot (`reboot=k`), never by a power-off.

`evidence.pid` is Firecracker itself; the keeper's pid stands in the details.
"""

from ironworks.metald.drivers.firecracker.driver import FirecrackerDriver
from ironworks.metald.drivers.firecracker.handle import FirecrackerHandle

__all__ = ["FirecrackerDriver", "FirecrackerHandle"]
