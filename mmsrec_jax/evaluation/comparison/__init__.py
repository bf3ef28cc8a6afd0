"""Systems of several runs side by side, and how sure a difference is."""
