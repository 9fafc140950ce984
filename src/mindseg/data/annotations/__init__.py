"""Labels of annotation tools: one reader for each format, and what turns their shapes into label maps."""
