"""A small invented world and a small language model that knows it: everything a first run of the package needs."""
