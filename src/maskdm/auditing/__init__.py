"""What a model leaks about the images it was trained on: measured, never promised."""
