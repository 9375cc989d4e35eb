"""Several ways of training at equal compute, and what the seeds show."""
