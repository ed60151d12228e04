"""Benchmarks: each measures us and its reference, alternately, in one run.

`./iron bench NAME [--quick] [--json]`. The names, references and goals are listed by
`./iron bench`. A result is one JSON object; with `--json` it is the last line of the output, and it
is kept under `benchmarks/results/` with the revision it was measured on.
"""
