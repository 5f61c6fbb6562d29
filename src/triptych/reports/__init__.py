"""Reports of runs: a page that a run keeps current while it trains, and a page that compares runs; no torch.

    log, answers ── history, rules ──> plain data ── live ──> report.html, and report-data.js beside it
                                                  └─ compare ──> one page for several runs

``report.html`` is written once; the run replaces ``report-data.js``, a script that the page loads again and again:
scripts are all that a page may load that was opened as a file.
"""
