"""Files in, pages out: nothing here opens a model."""
