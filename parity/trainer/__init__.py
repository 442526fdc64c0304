"""The full-scale torch trainer: docs/trainer.md.  It shares parameter names, readers and files with the reference, no maths."""
