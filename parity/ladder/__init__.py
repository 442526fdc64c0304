"""Reference against trainer, from single operations to whole runs."""
