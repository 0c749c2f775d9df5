"""Semantic segmentation that works at night, learned from labelled day images alone."""

__version__ = "0.1.0"
