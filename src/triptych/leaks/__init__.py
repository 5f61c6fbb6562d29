"""Samples that come twice: held-out ones that are trained on, and duplicates within what is trained on; no torch.

corpora ── contents ──> which images are the same bytes ── exact ──> pairs of samples
        ── near ──────> which images look the same      ──────────> more pairs, only where asked for
"""
