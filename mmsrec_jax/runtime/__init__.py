"""What every run needs: files, processes, devices, settings, logs."""
