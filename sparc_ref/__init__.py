"""SPARC (arXiv 2401.09865) in NumPy, with manual gradients.

Reads in the order in which data meets it: data -> ops -> alignment -> losses -> encoders -> model -> run -> show.
Importing this package imports NumPy and array-api-compat, nothing else.
"""

from sparc_ref.alignment import align_patches
from sparc_ref.losses import fine_grained_loss, global_loss
from sparc_ref.model import PRESETS, SPARCConfig, encode_images, encode_texts, forward, init_params

__version__ = "0.1.0"
__all__ = [
    "PRESETS",
    "SPARCConfig",
    "align_patches",
    "encode_images",
    "encode_texts",
    "fine_grained_loss",
    "forward",
    "global_loss",
    "init_params",
]
