"""Ask registries for images: a program of its own that runs in a sandbox with a network.

It is what builderd has in place of a general client, for what general clients do not offer: a blob
goes on where an earlier try broke off, no redirect leads to this machine or its neighbours, a blob
that somebody else has fetched is handed out only after the registry has given it to this tenant
too, and a registry that sends next to nothing is given up.
"""
