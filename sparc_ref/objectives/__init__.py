"""The objectives that SPARC is compared with, behind one signature; every gradient by hand.

    loss, parts, back = objective(params, v, t, mask, v_bar, t_bar, **options)
    grads = back(dloss)        # by name: v, t, v_bar, t_bar and every parameter that the objective uses

v (B,P,D) patches, t (B,L,D) tokens, mask (B,L) bool, v_bar, t_bar (B,D) global embeddings; params one flat dict with theta =
log(1/tau) and whatever else the objective has.  docs/objectives.md sets them side by side.
"""

from sparc_ref.objectives.clip import clip
from sparc_ref.objectives.filip import clip_filip, filip
from sparc_ref.objectives.flair import flair
from sparc_ref.objectives.gloria import gloria
from sparc_ref.objectives.mgca import mgca
from sparc_ref.objectives.pacl import pacl
from sparc_ref.objectives.siglip import siglip
from sparc_ref.objectives.sparc import sparc

__all__ = ["clip", "clip_filip", "filip", "flair", "gloria", "mgca", "pacl", "siglip", "sparc"]
