"""What the package does with damaged files, dying disks and killed processes."""
