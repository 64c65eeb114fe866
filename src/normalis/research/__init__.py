"""The laboratory: experiments, the paper's tables, selection without labels, synthetic anomalies.

The tool never imports it; ``normalis research`` is its door.
"""
