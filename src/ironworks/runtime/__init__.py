"""The chassis that every service stands on. It knows nothing of VMs, builds or bills."""
