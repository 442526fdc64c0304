from ng_base import both


def loss(v, t, mask, theta):
    l, dv, dt, dtheta = both(v, t, mask, theta)
    dt = -dt
    return l, dv, dt, dtheta
