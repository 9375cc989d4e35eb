"""Networks that can be trained: each a whole model in one file, sharing only `layers`."""
