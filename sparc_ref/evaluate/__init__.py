"""What a trained model can do, in numbers: plain NumPy arrays in, plain floats out; run/measure.py brings model and data set.

classification.py pictures to the nearest class: top-1, top-5, mean over classes, ties by expectation
retrieval.py      recall at K, pictures to captions and back
faithfulness.py   of the caption that is found first, how many words the picture's own captions hold
segmentation.py   zero-shot segmentation: patches to class names, mean intersection over union
grouping.py       does the alignment weight of a word fall on its object?
grounding.py      does the fine-grained loss look at the picture at all?
detection.py      boxes, average precision as COCO and LVIS have it
captioning.py     CIDEr-D, BLEU, ROUGE-L: captions against those that people wrote
check.py          shapes and NaN
"""
