"""Whole epochs as integers: which samples share a row, and which rank takes which row.

Takes `Lengths` ((K,) tokens and patches of K samples), budgets, seed and number of ranks; gives a `Plan`: rows as
lists of sample numbers, the same on every rank. Pure functions, no files.
"""
