"""What is normal for a score: p-values and thresholds from held-out normals, drift, colours."""
