"""The folder that `normalis score` writes: tables, maps and pictures."""
