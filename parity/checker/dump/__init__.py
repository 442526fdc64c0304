"""A batch of a training run, for whoever cannot hand over code: read, compared, judged, said."""
