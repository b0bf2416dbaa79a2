"""Types of arrays, and the order of the components of a symmetric tensor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Rows and columns of xx, yy, zz, yz, xz, xy: tensor[VOIGT] are the six components.
VOIGT = np.array([0, 1, 2, 1, 0, 0]), np.array([0, 1, 2, 2, 2, 1])
