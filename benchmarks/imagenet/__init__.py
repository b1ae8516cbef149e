"""ImageNet: the fine-tuning of the paper, tested on ImageNet-ReaL."""
