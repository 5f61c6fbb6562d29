"""Rows built just in time: the images of planned samples decoded in small processes without torch.

Takes a `Plan` and a `Corpus`; gives a `Row`: samples end to end, ``pixels (P, 3 * p * p) uint8``, no padding.
"""
