"""Published checkpoints: SiT, SiT with REPA, DiT and FreeFlow, in their own formats and conventions."""
