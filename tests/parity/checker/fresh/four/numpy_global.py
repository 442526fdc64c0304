import numpy as np


def clip_np(image, text, theta):
    a = image / np.sqrt((image**2).sum(1, keepdims=True))
    b = text / np.sqrt((text**2).sum(1, keepdims=True))
    z = np.exp(theta) * a @ b.T
    top = z.max()
    e = np.exp(z - top)
    return float((np.log(e.sum(0)) + np.log(e.sum(1)) + 2 * top - 2 * np.diag(z)).mean() / 2)
