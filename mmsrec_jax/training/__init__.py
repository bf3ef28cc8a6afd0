"""The training loop, its state and checkpoints, and supervised fine-tuning."""
