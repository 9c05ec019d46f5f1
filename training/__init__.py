"""The parts of `train.py`: options, the compiled step, the run folder, the paper's tables of runs."""
