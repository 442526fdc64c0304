"""Captions by a Flamingo-style model: a frozen vision tower, a frozen language model, and what is trained between them.

resampler.py   a picture's patches -> a fixed number of latents
gated.py       words look at the latents, through gates that start closed
gpt.py         a small language model of our own
language.py    language models as the captioner sees them; the command that trains ours
borrowed.py    the same for a causal language model of Hugging Face's, in a local folder
model.py       the whole; only its own parts are trained
fit.py         the loop of both commands: updates, metrics, checkpoints
train.py       the command, python -m parity.trainer.captioning
generate.py    greedy and beam search
words.py       how captions are cut into words before they are compared
task.py        the measurement: sparc-ref evaluate --task captioning
"""
