"""What NFA is worth: cells of data and network, a search for every arm, paired comparisons.

A cell is tuned, searched and reported in this order, each stage reading what the one before left on
record: the recipe of crop and flip, then four settings of every arm (six of RandAugment), both on
held-out training images of one seed; then the chosen setting of every arm on the test images, with
other seeds.
"""
