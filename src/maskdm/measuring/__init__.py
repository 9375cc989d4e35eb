"""What a run has learned: distances between sets of pictures, and the report a person reads."""
