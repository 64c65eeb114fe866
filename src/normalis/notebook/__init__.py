"""What a notebook wants of a detector: progress, tables, figures, and the verbs of PyOD.

::

    verbs     scores_frame, reconstruct, predict_proba, ..., mixed into both detectors
    figures   matplotlib figures, returned and not only written
    html      a detector as a cell shows it
    progress  a bar in a notebook, a line elsewhere
"""
