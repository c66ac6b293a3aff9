"""The `autopoiesis` command. One command a file; what it prints is in `rendering`."""
