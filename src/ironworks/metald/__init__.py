"""metald owns the VMs of one host."""
