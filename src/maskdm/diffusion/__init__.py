"""The method: process, prediction, weighting, denoiser, masks and the loss."""
