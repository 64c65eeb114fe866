"""Samples and arrays become images ready for a model; normal images are held out by unit."""
