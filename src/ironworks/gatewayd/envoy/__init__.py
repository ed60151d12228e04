"""The data plane: Envoy's configuration compiled from our state, and Envoy watched from outside.

Files below `<data>/gatewayd/envoy/`, all mode 0600, each replaced as a whole:
- `bootstrap.json`: what Envoy is started with, `envoy -c bootstrap.json`. Names the three others.
- `lds.json`: the listener: TLS, tokens, roles, rate limits. Changes with keys and limits.
- `rds.json`: the routes. Changes with deployments.
- `cds.json`: the clusters. Changes with deployments.

Envoy rereads the three when they are renamed into place, and keeps what it has if a file is bad. So
nothing of a deployment ever needs a restart of Envoy, and Envoy serves on while gatewayd is down.
"""
