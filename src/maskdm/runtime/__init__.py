"""This process: its device, its ranks, its memory, and what it prints."""
