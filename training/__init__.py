"""What `train.py` is made of: options, the compiled step, the run folder, the paper's tables of runs."""
