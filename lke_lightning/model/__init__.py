"""The language model: where things are, how to read it, and the change of its weights."""
