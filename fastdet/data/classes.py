# SPDX-License-Identifier: BSD-3-Clause
"""Classes are identified by name: across the files of a data set, and in a checkpoint.

Ids and positions differ between files that mean the same: tools number categories as they meet
them.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Classes:
    """The classes of a model.

    Attributes:
        names: by label; label 0 is "background".
        source: the file that they come from, for messages.
        drop_others: leave out what a file has of other classes, which else is an error.
    """

    names: Sequence[str]
    source: str | Path
    drop_others: bool = False

    def labels_of(self, names: Sequence[str], file: str | Path) -> np.ndarray:
        """The label here of each label in another file, (C + 1,) int64; 0 for what is left out.

        Args:
            names: the file's classes by label, "background" first.
            file: for messages. Where its classes have another order, one warning says so.

        Raises:
            ValueError: the file has other classes, or lacks one.
        """
        label_of = {name: label for label, name in enumerate(self.names)}
        missing = set(self.names) - set(names)
        others = set(names) - set(self.names)
        if missing or (others and not self.drop_others):
            raise ValueError(
                f"{file} has the classes {', '.join(names[1:])}; {self.source} has "
                f"{', '.join(self.names[1:])}. "
                + " and ".join(
                    f"{', '.join(sorted(some))} {'is' if len(some) == 1 else 'are'} only in {where}"
                    for some, where in ((others, file), (missing, self.source))
                    if some
                )
                + "."
            )
        labels = np.array([label_of.get(name, 0) for name in names], np.int64)
        if (np.diff(labels[labels > 0]) < 0).any():
            warnings.warn(
                f"{file}: its classes are in another order than in {self.source}, and are matched "
                "by name",
                stacklevel=3,
            )
        return labels
