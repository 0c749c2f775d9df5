"""Pages, cards and pictures."""
