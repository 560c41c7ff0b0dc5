"""Search a folder of images: `index`, `search` and `serve`."""
