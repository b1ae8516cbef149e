"""Speed and memory: of the flows, of augmentations, of a training step."""
