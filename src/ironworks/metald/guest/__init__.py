"""The guest: its kernel and initrd, and what is told to it.

- `build` makes kernel and initrd from Debian's kernel package and the C sources in `guest/`.
- `config` writes the config disk that init reads.
- `control` speaks with init while the VM runs.
"""
