"""Between tasks and text: routing tokens, templates, link queries, the side-car, generation."""
