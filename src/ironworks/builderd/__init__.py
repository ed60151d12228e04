"""builderd (docs follow)."""
