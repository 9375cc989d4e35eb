"""Weights from elsewhere: a table of names and two functions each."""
