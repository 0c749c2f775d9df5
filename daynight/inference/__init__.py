"""Commands that run trained networks on images."""
