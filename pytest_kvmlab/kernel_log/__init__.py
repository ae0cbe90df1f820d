"""What the kernel of a guest complains about: from the bytes of a console or log to findings. Pure."""
