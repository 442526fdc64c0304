"""How a class is said: the templates of CLIP, all of them while training, the seven best where a detector is measured."""

BEST = ("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
        "art of the {}.", "a photo of the small {}.")
_A_AND_THE = (
    "a bad photo of {}", "a sculpture of {}", "a rendering of {}", "graffiti of {}", "a tattoo of {}", "a bright photo of {}",
    "a cropped photo of {}", "a painting of {}", "a pixelated photo of {}", "a jpeg corrupted photo of {}",
    "a blurry photo of {}", "a photo of {}", "a good photo of {}", "a doodle of {}", "a close-up photo of {}", "a sketch of {}",
    "a low resolution photo of {}", "a rendition of {}", "art of {}", "itap of {}", "a drawing of {}", "a dark photo of {}",
    "a black and white photo of {}",
)  # fmt: skip
_BOTH = ("clean", "dirty", "cool", "nice", "weird", "small", "large", "hard to see")
CLIP = tuple(
    [f"{start.format(article + ' {}')}." for start in _A_AND_THE for article in ("a", "the")]
    + [f"a photo of {article} {word} {{}}." for word in _BOTH for article in ("a", "the")]
    + [f"{article} {word} {{}}." for word in ("embroidered", "plastic", "origami", "toy", "plushie", "cartoon")
       for article in ("a", "the")]
    + ["a {} in a video game.", "the {} in a video game.", "a photo of many {}.", "a photo of my {}.", "a photo of one {}.",
       "itap of my {}."]
)
TEMPLATES = {"name": ("{}",), "best": BEST, "clip": CLIP}


def said(name: str) -> str:
    """A class' name as a query: lower case, no underscores."""
    return " ".join(name.lower().replace("_", " ").split())
