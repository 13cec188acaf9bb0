"""One diffusion transformer: as teacher, as student, and as the network a teacher is pretrained with."""
