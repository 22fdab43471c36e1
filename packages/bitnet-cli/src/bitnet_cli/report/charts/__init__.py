"""Charts as data, drawn as SVG or PNG."""
