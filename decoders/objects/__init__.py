"""Objects: boxes under super links, by Grounding DINO without its text tower."""
