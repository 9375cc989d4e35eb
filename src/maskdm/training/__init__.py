"""Everything that happens between a folder of images and a file of weights."""
