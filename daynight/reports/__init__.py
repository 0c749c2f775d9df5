"""HTML pages, model cards and pictures."""
