"""What people see: results as tables and lines. Nothing here computes."""
