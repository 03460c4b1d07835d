"""Pixels: files, packs of them, MATLAB's resize, scores, labelled strips. No networks."""
