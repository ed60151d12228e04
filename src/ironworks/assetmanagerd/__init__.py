"""assetmanagerd owns assets: immutable bytes named by their SHA-256, and who uses them.

    REGISTERED → AVAILABLE ⇄ IN_USE        IN_USE: at least one lease; cannot be deleted by anyone
        │            ├──→ ARCHIVED ──→ DELETED   by hand (ARCHIVED → AVAILABLE: restored)
        │            └──────────────→ DELETED   by garbage collection, after its TTL unused
        └──→ FAILED ────────────────→ DELETED   by clean-up

Invariants, each with a test:

- An asset is IN_USE exactly while an ACTIVE lease holds it; state and leases change in one
  transaction, so no deletion can come between.
- Bytes are on disk, checked and fsynced, before an asset is AVAILABLE, and stay until every record
  that names them is DELETED or FAILED.
- Stored bytes never change: files are read-only, and VMs get them by hard link or reflink.
- A tenant sees its own assets and the platform's. All others are answered as if they did not exist,
  and identical bytes of two tenants are two records over one file.
- What is going to be done to bytes is in the store before it is done: a registration that was
  interrupted is taken up again, bytes that are to go are listed until they are gone.
"""
