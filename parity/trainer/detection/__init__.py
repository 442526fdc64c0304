"""Open-vocabulary detection after OWL-ViT (section 4.5): a trained pair of towers, two heads on the patches, boxes by name.

heads.py      the detector: class head, box head and its bias          matching.py  which patch answers for which box
losses.py     focal loss, L1, GIoU of a picture                        augment.py   crops, mosaics, queries
data.py       COCO, LVIS, Objects365, Visual Genome, scenes with masks __main__.py  the training command
train.py      gradients clipped by example, the loop, checkpoints      predict.py   names and pictures in, boxes out
task.py       average precision, as the evaluation tasks have it       pictures.py  what was found, drawn
"""
