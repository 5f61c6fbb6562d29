"""What everyday JPEG, PNG and WebP files say of themselves, from a few small reads; others are left to Pillow."""
