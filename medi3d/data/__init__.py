"""Training data: folds of prepared cases, random patches, augmentation, and a synthetic phantom.

May import ``io``, ``preprocess`` and the ground floor; knows no network.
"""
