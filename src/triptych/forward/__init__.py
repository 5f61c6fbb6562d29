"""From a row to its loss: tensors, attention between the tokens of a sample only, chunked cross entropy.

Takes a `Row`; gives a `Batch` (``input_ids (1, T)``, ``position_ids (4, 1, T)``, ``pixels (P, 3 * p * p)``) and the sum
of the loss over its supervised tokens.
"""
