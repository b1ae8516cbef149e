"""The commands of ``timm-nfaug``, one a file: each has a `main(argv)`."""
