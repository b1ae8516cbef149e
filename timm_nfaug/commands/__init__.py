"""What `timm-nfaug` runs beside train and preview: a module for each command, with a `main(argv)`."""
