"""What side memories read: each file serves the package and, copied as it is, goes with an exported memory."""
