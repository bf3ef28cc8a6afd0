"""What a step costs on machines that are not here: programs compiled ahead of time, and read."""
