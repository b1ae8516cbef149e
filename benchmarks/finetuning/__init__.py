"""Fine-tuning of pretrained networks on few images per class, and the data for it."""
