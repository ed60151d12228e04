"""`python -m ironworks.builderd.registry`: one plan on standard input, lines of JSON out."""

from __future__ import annotations

import os
import sys

from ironworks.builderd.flatten.lines import answer
from ironworks.builderd.registry.fetch import fetch
from ironworks.builderd.registry.plan import read_plan

if __name__ == "__main__":
    status = answer(lambda text, say: fetch(read_plan(text), say))
    sys.stdout.flush()
    # Threads may still wait for a registry that has failed already.
    os._exit(status)
