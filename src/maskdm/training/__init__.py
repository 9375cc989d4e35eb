"""Everything that happens between a folder of pictures and a file of weights."""
