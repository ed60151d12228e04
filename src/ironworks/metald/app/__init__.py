"""The use cases of metald: load, decide, commit, then act on the machine.

`create`, `boot` and `stop` hold the lifecycle, `cleanup` takes apart what a VM has, `watch` brings
the end of a VMM into the store, `recover` finds VMs again, `queries` only read.
"""
