"""The full-scale torch trainer.  It shares the parameters' names with the reference, and none of its maths."""
