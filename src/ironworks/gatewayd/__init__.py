"""gatewayd: the public API, and what stands behind it on the platform's side.

Owns tenants, API keys, the issuer of tokens, limits, deployments with their replicas, jobs, the
host directory, and the compiled configuration of Envoy. It decides and compiles; Envoy serves. No
request of a tenant's application ever passes through this process.

    deployment:  Deploying → Running ⇄ Degraded
                     └→ Failed
                 any → Deleting → Deleted
    replica:     Placed → Created → Booting → Ready ⇄ Unready
                 any → Deleting → Deleted
    job:         Queued → Running → Completed | Failed
                            └→ Cancelling → Cancelled

Invariants, each with a test:
- What a call answered is on disk: an accepted job ends, whatever is killed.
- A replica stands in the store before its VM is asked for, with an id that follows from deployment,
  generation and index: a workflow that runs again finds its own VM, never makes a second one.
- The route to a replica exists only while the replica is Ready; the route of a deployment is gone
  before its first VM is stopped.
- A replica whose VM may exist is Deleting until its host has said that it is gone.
- A tenant's things are looked up with the tenant's id in the query; of another tenant's there is no
  trace in an answer.
- A secret of an API key is never stored.
"""
