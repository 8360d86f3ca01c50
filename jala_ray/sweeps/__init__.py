"""Sweeps: search spaces as data, trials that are the real jobs, a ledger that survives the driver."""
