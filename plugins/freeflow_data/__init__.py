"""Sources of training batches and held-out images, and codecs between images and states."""
