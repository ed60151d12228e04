"""builderd turns images into root file systems: a durable queue of builds and their workers.

    QUEUED → RESOLVING → PULLING → BUILDING → VALIDATING → REGISTERING → COMPLETED
    RESOLVING → COMPLETED        the tenant has built this digest before
    every state before COMPLETED → FAILED, with a reason; → CANCELLED, on request

Invariants, each with a test:

- An accepted build ends COMPLETED, FAILED or CANCELLED, whatever is killed meanwhile; one whose
  worker died begins again at RESOLVING, on another worker if there is one.
- A turn of the queue takes up the build whose turn it is when it begins: tenants in turn, each
  within its limit, a tenant's own builds by priority. It is decided in one transaction.
- Every write of a worker names the revision that it follows: who has lost a build changes nothing.
- A tenant's policy only narrows the platform's, and the policy in force is part of what makes two
  builds the same.
- A password is encrypted in the database and in no file; it is never answered and never logged.
- COMPLETED is written only after assetmanagerd has answered that the asset is AVAILABLE.
- What is built is what a digest says: every blob is compared with its digest, and the tar in every
  layer with the image's configuration.
- No path of an image becomes a path of the host; layers are read and written in a sandbox without a
  network and without the host's files.
- Paths on the host are read only below `local_image_roots`.
- A digest alone proves no right to bytes: a kept blob serves a tenant once the registry it came
  from has given it to this tenant too. Builds are never another tenant's.
- Builds connect to public addresses and by TLS, or to what the operator has named.
- Scratch is a directory a build, gone when the build has ended and emptied at start.
"""
