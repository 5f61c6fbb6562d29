"""Image files: where they are, how large they are, and their pixels as patches.

Takes an `ImageRef`; gives a location, a size in pixels from the header alone, and, only when a row is built, patches:
(P, 3 * p * p) uint8, with p the patch size.

    ImageRef -> identity.locate() -> measure() -> (height, width) -> Geometry -> SizedImage -> load_patches()
"""
