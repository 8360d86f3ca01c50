"""What an inverse-dynamics teacher is worth: a page of its own, and what a run's page says of the run's teacher."""
