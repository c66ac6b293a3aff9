"""The `autopoiesis` command. Each command has a file; its output for people is in `rendering`."""
