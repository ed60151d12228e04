"""The whole platform on one machine: what it needs, what runs, what it leaves.

- `preflight`: what must be there before anything starts; each lack is one sentence.
- `ports`: the default ports, or free ones where those are taken.
- `platform`: `iron up`: one supervisor, six services, Envoy; one platform a data directory.
- `inventory`: everything of a platform that exists on this host, read from the kernel.
- `purge`: removes what a platform that died has left.

It knows the services only as programs to start (`python -m ironworks.<service>`).
"""
