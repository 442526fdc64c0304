"""What trains and remembers: the loop, run directories, checkpoints, what --data can name, a model measured on a data set."""
