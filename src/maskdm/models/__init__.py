"""Backbones, and a model as a file: specification, construction, weights, transfer, formats of others."""
