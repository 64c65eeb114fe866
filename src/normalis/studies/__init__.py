"""Studies: what DICOM headers say about files, which of them are meant, and how slices lie.

Nothing here decodes a pixel. `index` reads headers, `where` states a selection, `select` applies it
and says what was left aside and why, `geometry` looks at how the slices of a series lie in space.
"""
