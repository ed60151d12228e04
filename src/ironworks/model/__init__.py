"""The pure vocabulary: ids, errors, money, units, pages. No I/O, no clock, nothing of a service."""
