"""How good generated images are: features, distances, held-out error."""
