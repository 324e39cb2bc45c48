"""Training schemes, one file each; see lorabench.personalization.training."""
