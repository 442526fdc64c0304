"""The paper's downstream tasks: a checkpoint and data as people have it in, numbers, pictures and what was left out back.

result.py          what a measurement says, and how it is kept
embedder.py        a trained model as the tasks see it: pictures and texts in, NumPy embeddings out
stream.py          pictures of any layout, in files or in tar shards, a batch at a time
webdataset.py      the layout of tar shards that classification and retrieval share
classes.py         folders of classes and their names; prompts.py what is said around a name
spec.py            "voc:VOCdevkit/VOC2012?average=dataset": a layout, where it lies, the choices of the protocol
classification.py, retrieval.py, faithfulness.py, segmentation.py: one file a task; segmentation_layouts.py opens its data,
taggers.py          parts of speech for faithfulness

A task is a module that has
    KINDS                a dict: the name of a layout -> the function that opens it, open(path, *, option=default, ...)
    Protocol             a frozen dataclass: every choice that moves the numbers, by name, each with its reason beside it
    open_model(checkpoint, *, batch, shards)                       -> what measure needs of a model; it has `name`, the path,
                                                                      `identity`, a hash of its weights, and `trained_on`
    measure(model, data, protocol, *, limit, pictures, say)        -> Result
The mathematics is in sparc_ref.evaluate, which takes plain arrays. Tasks whose heads have to be trained (detection, captioning)
live beside the trainer and are found by entry points of the group "sparc_ref.tasks".
"""
