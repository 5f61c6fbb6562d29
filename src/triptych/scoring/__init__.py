"""Scores of answers: a number from 0 to 1 for each answer, means with intervals for each group; no torch.

Answered(prediction, reference, record) ── Scorer ──> 0 to 1, or None where nothing can be scored
the scores of a group                   ── intervals ──> Mean(value, low, high)
"""
