"""Data: scenes drawn here, scenes pasted from pictures, image-caption files; tokenizers; batches."""

from .batches import Batch, Batches, Joined, Limited, to_images, word_regions
from .drawn import DrawnScenes
from .example import Example, Region
from .tokenizer import Encoding, WordTokenizer, load_tokenizer

__all__ = ["Batch", "Batches", "DrawnScenes", "Encoding", "Example", "Joined", "Limited", "Region", "WordTokenizer",
           "load_tokenizer", "to_images", "word_regions"]
