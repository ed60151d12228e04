"""billaged owns what the VMs of one host consumed until aggregatord has it.

    tick ──▶ ring + log ──fsync──▶ acknowledged ──minute, flush, end──▶ window
         window ──▶ batch in the outbox ──fsync──▶ sealed ──sent──▶ acknowledged ──▶ forgotten

Invariants:
- What is acknowledged to metald is on disk, in the log or in a batch.
- A sample is in exactly one window, a window in exactly one batch; ids and contents are
  deterministic, and a batch is sent only after its sealing is durable. So whatever is sent again
  after a crash is the same.
- A batch is forgotten only when aggregatord has acknowledged it.
- A missing sample is in exactly one gap with a reason, in the window that follows it.
"""
