"""Files, processes, the console, errors."""
