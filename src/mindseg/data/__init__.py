"""Data: what a data set is, how it is packed, augmented and fed."""
