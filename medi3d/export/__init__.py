"""Trained networks and predictions for other programs. This room is still empty."""
