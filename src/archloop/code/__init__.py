"""Networks as text: extraction and rendering, static policy, cleaning, hints."""
