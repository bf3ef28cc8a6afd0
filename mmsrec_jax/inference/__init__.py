"""What a trained model is asked: text, scores, log-probabilities, embeddings."""
