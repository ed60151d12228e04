"""The jail of a VMM that has no jailer of its own.

Two parts stand around such a VMM:

    metald ─ starts ─► keeper ─► bwrap ─► setpriv ─► VMM
                       cgroup    mount, pid,   uid, gid,
                       netns     ipc, uts      no capabilities,
                       tap, logs namespaces    no new privileges

- `keeper` (C, beside this file) joins cgroup and network namespace, opens the tap, and stays to
  keep a bounded log, so that the VM neither needs metald nor can fill the disk.
- bubblewrap shows the VMM a root of its own: `/usr` and the loader's directories, read-only, and
  the VM's files, each by itself. There is no `/proc`, no `/dev`, nothing to write to, and no other
  process to see. Sockets and the tap come in as open descriptors.
"""
