"""What a trained model can do, in numbers: plain NumPy arrays in, plain floats out; only run.py knows the model.

retrieval.py      recall at K, pictures to captions and back
segmentation.py   zero-shot segmentation: patches to class names, mean intersection over union
grouping.py       does the alignment weight of a word fall on its object?
grounding.py      does the fine-grained loss look at the picture at all?
run.py            all of them for a model and a data set; and what the figures need for a few examples
check.py          shapes and NaN
"""
