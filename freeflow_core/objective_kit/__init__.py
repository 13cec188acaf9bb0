"""What objectives share: passes, derivatives, rows."""
