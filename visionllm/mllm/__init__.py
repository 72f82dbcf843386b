"""Multimodal language models. Only ``internvl`` knows what is inside transformers' classes."""
