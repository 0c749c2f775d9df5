"""What comes from disk: layouts, labels, samples."""
