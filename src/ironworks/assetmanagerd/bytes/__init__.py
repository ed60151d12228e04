"""Bytes of assets: where they are kept, what they are, and how they come into a VM's directory."""
