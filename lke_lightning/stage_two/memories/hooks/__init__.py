"""How memories are attached to a model of transformers: with the `read` of a kind behind it, a file is exported."""
