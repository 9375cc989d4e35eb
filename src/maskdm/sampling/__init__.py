"""From noise to images: timesteps, samplers, guidance, edits."""
