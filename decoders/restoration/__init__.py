"""Pictures made sharper: aligned super-resolution under super links."""
