"""Training objectives behind one contract (`base.Objective`); each owns its extra modules."""
