"""Results to look at: overlays and the HTML report."""
