"""Data: scenes drawn here, scenes pasted from pictures, image-caption files; tokenizers; batches."""

from .batches import Batch, Batches, Joined, Limited, to_images, word_regions
from .captions import CaptionData, open_captions
from .drawn import DrawnScenes
from .encoding import Encoding
from .example import Example, Region
from .images import load_image
from .load_report import LoadReport
from .mosaic import MosaicScenes
from .pictures import PictureScenes
from .tokenizer import WordTokenizer, load_tokenizer
from .unigram import UnigramTokenizer
from .wallpaper import WallpaperScenes

__all__ = ["Batch", "Batches", "CaptionData", "DrawnScenes", "Encoding", "Example", "Joined", "Limited", "LoadReport",
           "MosaicScenes", "PictureScenes", "Region", "UnigramTokenizer", "WallpaperScenes", "WordTokenizer", "load_image",
           "load_tokenizer", "open_captions", "to_images", "word_regions"]
