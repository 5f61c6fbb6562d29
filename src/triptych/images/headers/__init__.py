"""What files say of themselves: everyday JPEG, PNG and WebP of their size, from a few small reads (Pillow reads the
others); and what a file that is no image is.
"""
