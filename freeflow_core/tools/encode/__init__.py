"""`freeflow encode`: latents of a data set, computed once."""
