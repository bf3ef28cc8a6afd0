"""Forward passes without gradients: sampling, scoring, embeddings."""
