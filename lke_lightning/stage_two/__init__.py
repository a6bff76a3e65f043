"""Stage two: weights by least squares."""
