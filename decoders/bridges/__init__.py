"""Networks of other toolboxes as decoders: built from their own settings, asked by super links, with their own losses.

Nothing of a toolbox is imported before a decoder of it is built.
"""
