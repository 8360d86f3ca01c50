"""PELA's Table 1 on any manifest, by one command: `jala study paper --manifest M`.

`rows.py` has the rows as small diffs of one base, `asked.py` the command line. A call becomes a
`plan.PlannedStudy`, which claims its folder:

1. `parts.py`: what runs share, made once: the motion tokenizer, and with `--cache` a cache for each frozen encoder.
2. `runs.py`: rows x seeds, seed by seed; each a run folder that goes on where it was cut off, then scored on the split val.
3. `results.py`, `page.py`: table.json, table.md and results.html over the runs that are done, beside the printed numbers.

`cost.py` is `--dry-run`; `census.py` counts what the manifest has for the table and says what it lacks; `findings.py` warns of what is to
be known before a number is used.
"""
