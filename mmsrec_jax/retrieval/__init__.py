"""Similar users, and what they took next."""
