"""The keeping of a run: safe steps, validation, the run's folder, what it says of itself."""
