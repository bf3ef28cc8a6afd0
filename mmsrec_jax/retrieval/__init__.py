"""Similar users, found with a sequential recommender."""
