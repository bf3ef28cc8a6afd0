"""Sequential recommenders: models, losses, training, scoring."""
