"""From a source of images to packed arrays: collect, clean, split, augment."""
