"""SVG drawn by hand: one file for each kind of mark."""
