"""Pages that show samples: one file each, nothing fetched, every text of the data inert; no torch.

    Corpus sample ── cards ──> a card (plain data) ── page ──> one HTML file with the scripts in assets/pages

What a card holds is described in ``cards``; ``assets/pages/cards.js`` draws it, the same in every page.
"""
