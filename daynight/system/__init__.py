"""Files, processes, the console, errors."""

__version__ = "0.1.0"
