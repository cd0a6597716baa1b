"""Running a model and reading what it computes: capture, readout, generation, edits, attribution, scores."""
