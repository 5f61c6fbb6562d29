"""The good samples of a run, on disk: examined, indexed, measured, fitted to the limits.

Takes sources and a `Reading` (template, geometry, budget); gives a `Corpus` of K samples, memory-mapped, and a `Census`
of every problem.

    shards -> examine -> index -> image_sizes -> lengths -> Corpus
"""
