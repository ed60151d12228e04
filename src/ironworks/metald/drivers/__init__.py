"""Drivers of VMMs: one interface (`driver`), one conformance suite, one module or folder each."""
