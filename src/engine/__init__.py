"""Engine: training, checkpoints, evaluation and inference."""
