"""How published data sets lie on disk."""
