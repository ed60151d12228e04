"""`python -m ironworks.builderd.flatten`: one plan on standard input, lines of JSON out."""

from __future__ import annotations

import sys

from ironworks.builderd.flatten.lines import answer
from ironworks.builderd.flatten.plan import read_plan
from ironworks.builderd.flatten.run import flatten

if __name__ == "__main__":
    sys.exit(answer(lambda text, say: flatten(read_plan(text), say)))
