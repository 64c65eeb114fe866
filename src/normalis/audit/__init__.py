"""What is wrong with this data: leaks, shared patients, confounds, shifts. Before any training.

`audit` reads a data set once and answers, in the order of harm:

* *leak*: a test image that training has seen: the same file, the same pixels, a near copy, a
  mirrored or shifted one; a patient on both sides;
* *confound*: a baseline score that separates the classes without looking at anatomy;
* *shift*: normal test images that differ from the training's as such;
* *note*: what else a reader of results should know.

``run`` asks, ``inventory`` says what is known besides pixels, ``copies`` and ``confounds`` measure,
``findings`` puts it into sentences, ``result`` is what is returned.

Nothing is tuned on labels, and training and test are never changed: the answer lists the images,
and `Audit.leaked` is what an evaluation leaves out.
"""

from __future__ import annotations

from normalis.audit.copies import Copies, compare_images
from normalis.audit.findings import Finding
from normalis.audit.inventory import image_key
from normalis.audit.result import Audit
from normalis.audit.run import audit
from normalis.duplicates import duplicate_groups

__all__ = [
    "Audit",
    "Copies",
    "Finding",
    "audit",
    "compare_images",
    "duplicate_groups",
    "image_key",
]
