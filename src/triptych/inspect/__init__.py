"""``triptych inspect``: what is in the data, what the limits do to it, and what each sample looks like to the model.

run file or data ── gather ──> Gathered ── overview, what_if ──> numbers ── text_view ──> a terminal
                                              └── inspect_page (cards, thumbnails) ──> one HTML file
"""
