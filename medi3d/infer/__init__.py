"""Prediction: sliding windows, averaging of runs, and the way back to the scanner's own geometry."""
