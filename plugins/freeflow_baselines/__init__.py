"""Published objectives to compare with, one file each."""
