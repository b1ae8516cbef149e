"""What NFA does when files are hostile, disks are full and processes are killed."""
