"""builderd turns images into root file systems: a durable queue of builds and their worker.

    QUEUED → RESOLVING → PULLING → BUILDING → VALIDATING → REGISTERING → COMPLETED
    RESOLVING → COMPLETED        the tenant has built this digest before
    every state before COMPLETED → FAILED, with a reason; → CANCELLED, on request

Invariants, each with a test:

- An accepted build ends COMPLETED, FAILED or CANCELLED, whatever is killed meanwhile; one whose
  worker died begins again at RESOLVING.
- COMPLETED is written only after assetmanagerd has answered that the asset is AVAILABLE.
- What is built is what a digest says: every blob is compared with its digest, and the tar in every
  layer with the image's configuration.
- No path of an image becomes a path of the host; layers are read and written in a sandbox without a
  network and without the host's files.
- Paths on the host are read only below `local_image_roots`.
- One tenant's cached blobs and builds are never another's: a digest alone proves no right to bytes.
- Scratch is a directory a build, gone when the build has ended and emptied at start.
"""
