"""The networks. They know nothing of files, command lines or Accelerate."""
