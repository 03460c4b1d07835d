"""Pixels: files of every kind, MATLAB's resize, scores, labelled strips. No networks."""
