import numpy as np

from sparc_ref.losses import fine_grained_loss


def both(v, t, mask, theta):
    l, _, back = fine_grained_loss(v, t, mask, np.asarray(theta, v.dtype))
    return (l, *back())
