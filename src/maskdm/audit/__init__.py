"""What a model leaks about the pictures it was trained on: measured, never promised."""
