"""From a row to the batch of a step: reading, laying out, collating."""
