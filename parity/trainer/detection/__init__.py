"""Open-vocabulary detection after OWL-ViT (section 4.5): a trained pair of towers, two heads on the patches, boxes by name.

heads.py      the detector: class head, box head and its bias          matching.py  which patch answers for which box
losses.py     focal loss, L1, GIoU; each example's gradient clipped    prompts.py   how a class is said
data.py       COCO, LVIS, Objects365, Visual Genome, scenes with masks augment.py   crops, mosaics, queries
train.py      the loop and its checkpoints                             predict.py   names and pictures in, boxes out
task.py       average precision, as the evaluation tasks have it       __main__.py  the training command
"""
