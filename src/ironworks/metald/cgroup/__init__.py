"""The cgroup of a VM: `ironworks/<tag>/<vm_id>` in every hierarchy that counts or limits.

Two layouts are supported: v2, and the hybrid of machines whose controllers still hang in v1
hierarchies beside a v2 hierarchy without controllers.
"""
