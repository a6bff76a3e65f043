"""Stage one: target activations by gradient descent."""
