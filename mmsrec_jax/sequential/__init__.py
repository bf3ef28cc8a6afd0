"""Sequential recommenders whole: models, losses, training, scoring."""
