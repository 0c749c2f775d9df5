"""The method on drawn streets."""
