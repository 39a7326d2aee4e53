"""Voxels of one grid from those of another: a matrix an axis where axes run parallel, SimpleITK where they do not."""
