"""Proto ↔ types, nothing else: `vms` serves VmService, `host` serves HostService."""
