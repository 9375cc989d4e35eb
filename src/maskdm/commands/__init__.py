"""The commands, a file for each group: their options, and what calls the work. Nothing heavy is imported at the top."""
