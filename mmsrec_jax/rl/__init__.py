"""GRPO of the summarizer: rollouts, rewards, advantages, updates."""
