"""Scores of segmentation networks on labelled data sets."""
