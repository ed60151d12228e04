"""Use cases: load, decide, commit, then do."""
