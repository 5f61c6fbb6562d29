"""The good samples of a run, on disk: examined, indexed, measured, fitted to the limits.

Takes sources and an `Encoder` (template, geometry, budget); gives a `Corpus` of K samples, memory-mapped, and a
`CheckReport`
of every problem.

    shards -> examine -> index -> image_sizes -> lengths -> Corpus
"""
