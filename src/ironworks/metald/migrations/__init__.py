"""Schema of metald's database, version by version."""
