"""The method of the paper as pure functions of tensors: masks, process, prediction, loss, samplers. No files."""
