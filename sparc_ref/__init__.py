"""SPARC (arXiv 2401.09865) in NumPy, with manual gradients.

Reads in the order in which data meets it: data -> ops -> encoders -> alignment -> losses -> model -> train.
Importing this package imports NumPy and array-api-compat, nothing else.
"""

__version__ = "0.1.0"
