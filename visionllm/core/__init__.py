"""The nouns every other package speaks in. Imports nothing of ours."""
