"""The QEMU driver: KVM where a probe boot has proved it, else emulation.

One VM is one QEMU in a jail (`metald.jail`), made like this:

- metald binds two sockets in the VM's directory, `qmp.sock` and `control.sock`, and hands them to
  QEMU as open descriptors; QEMU listens on them and sees no directory that it could write to.
- QEMU starts stopped (`-S`). `boot` lets the vCPUs run.
- The serial console goes to QEMU's standard output, from where the keeper takes it to a bounded
  `console.log`; QEMU's own complaints go to `vmm.log`.
- The guest's init speaks over a virtio-serial port. Whether the workload runs, and how it ended,
  comes from there, or, if no metald was listening, from init's last words on the console.

`evidence.pid` is QEMU itself; the keeper's pid stands in the details.
"""

from ironworks.metald.drivers.qemu.driver import QemuDriver
from ironworks.metald.drivers.qemu.handle import QemuHandle

__all__ = ["QemuDriver", "QemuHandle"]
