"""What every step stands on: processes, sharding, files, progress, interruption, errors."""
