"""aggregatord owns usage and what it costs.

    batch ──validate──▶ accepted: raw samples, summary ──▶ ledger ──▶ acknowledged
               └──────▶ quarantined: kept with its reason, not billed ──▶ ledger ──▶ acknowledged
    ledger ──dirty hour──▶ hourly ──▶ daily ──▶ billing records ──▶ invoice lines

Invariants:
- Data first, then the claim in the ledger, then the answer. Every write can be repeated: rows of
  one key replace each other, so a batch that comes twice changes nothing.
- Counters are cumulative and usage is their growth, so sums telescope: what raw samples, hours,
  days and invoice lines add up to is the same integer.
- Hourly and daily rows are versions, computed anew from summaries whenever something arrives for
  their time; the highest version counts.
- A price version never changes, and begins with a UTC day.
"""
