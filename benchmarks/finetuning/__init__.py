"""Fine-tuning: pretrained networks on few images per class, and the data for it."""
