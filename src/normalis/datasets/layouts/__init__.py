"""Forms of a data folder that are recognised; one file each, listed in `LAYOUTS`."""
