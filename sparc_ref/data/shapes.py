"""Eight silhouettes as signed distances, and their textures.

A shape maps coordinates x, y (x to the right, y down, the shape inside the unit circle) to a distance that is negative inside.
A texture maps coordinates in pixels to a distance that is negative where the second tone goes. A pixel's coverage is 0.5 minus
the distance in pixels, clipped to 0..1: edges are antialiased and need no supersampling.
Only + - * / sqrt, abs, min and max are used: IEEE fixes their results to the last bit.
"""

import numpy as np


def circle(x, y):
    return np.sqrt(x * x + y * y) - 0.95


def ring(x, y):
    return np.abs(np.sqrt(x * x + y * y) - 0.72) - 0.26


def square(x, y):
    return np.maximum(np.abs(x), np.abs(y)) - 0.7


def triangle(x, y):
    return np.maximum(y - 0.5, 0.8660254 * np.abs(x) - 0.5 * y - 0.5)


def cross(x, y):
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 0.95, np.minimum(x, y) - 0.29)


def moon(x, y):
    x = x - 0.14
    inner = x - 0.52
    return np.maximum(np.sqrt(x * x + y * y) - 0.9, 0.7 - np.sqrt(inner * inner + y * y))


def star(x, y):
    """Five points: fold the plane into one tenth of the star, then measure to one edge."""
    x, y = np.abs(x), -y
    for nx, ny in ((0.80901699, -0.58778525), (-0.80901699, -0.58778525)):
        fold = 2.0 * np.maximum(nx * x + ny * y, 0.0)
        x, y = x - fold * nx, y - fold * ny
    return 0.92332036 * np.abs(x) + 0.38403063 * (y - 1.0)        # the edge from the tip (0, 1) to the notch at radius 0.45


def heart(x, y):
    """Two discs above a wedge whose sides are tangent to them."""
    x, y = np.abs(x) / 0.95, y / 0.95 + 0.02
    disc = np.sqrt((x - 0.44) * (x - 0.44) + (y + 0.30) * (y + 0.30)) - 0.50
    wedge = np.maximum(0.7371746 * x + 0.6757023 * (y - 0.92), 0.5539 * x - 0.8327 * (y + 0.5))
    return 0.95 * np.minimum(disc, wedge)


SHAPES = {"circle": circle, "square": square, "triangle": triangle, "star": star,
          "cross": cross, "ring": ring, "heart": heart, "moon": moon}


def striped(x, y, period):
    return np.abs(y / period - np.floor(y / period) - 0.5) * (2 * period) - 0.5 * period


def dotted(x, y, period):
    x, y = x / period - np.floor(x / period) - 0.5, y / period - np.floor(y / period) - 0.5
    return (np.sqrt(x * x + y * y) - 0.33) * period


def checked(x, y, period):
    x, y = x / period - np.floor(x / period) - 0.5, y / period - np.floor(y / period) - 0.5
    return np.where((x < 0) == (y < 0), np.float32(-1.0), np.float32(1.0))


TEXTURES = {"plain": None, "striped": striped, "dotted": dotted, "checked": checked}
