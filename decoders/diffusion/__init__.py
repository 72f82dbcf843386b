"""Pictures out: latent diffusion under super links."""
