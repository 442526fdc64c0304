"""What the trainer reads: tar shards and the reference's data sets, in an order that any number of workers resumes."""
