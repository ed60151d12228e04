"""Schema of gatewayd's database, version by version."""
