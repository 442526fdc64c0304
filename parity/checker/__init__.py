"""Check your own: an implementation in, a verdict out."""
