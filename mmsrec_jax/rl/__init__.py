"""GRPO on verifiable rewards (MMSRARec, stage 1)."""
