"""Fine-tuning of networks pretrained on ImageNet, with few images per class."""
