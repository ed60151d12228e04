"""Schema of builderd's database, version by version."""
