"""Best-of-N: the one-step student screens noises for the teacher."""
