"""What objectives share: passes through networks, their derivatives, and rows of noisy data."""
