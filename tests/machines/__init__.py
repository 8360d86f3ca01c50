"""Several machines' worth of Ray on one: nodes that come, go, are taken away, die, and lose their network."""
