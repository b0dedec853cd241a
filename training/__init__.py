"""Training of the tiny models; the losses are those of the published sizes too."""
