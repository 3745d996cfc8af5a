"""Tables of plain values, as a file or as a data frame."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ReapxError
from ..files.whole_files import path_of

if TYPE_CHECKING:
    import pandas

Value = str | int | float | bool
Row = dict[str, Value]


class Tabular:
    """What has a table of plain values: all that a subclass defines is ``_rows``."""

    def _rows(self) -> list[Row]:
        """Rows, each a dict from the names of the same columns to values."""
        raise NotImplementedError

    def to_dataframe(self) -> pandas.DataFrame:
        """The table as a pandas data frame; errors that were not measured are NaN.

        Raises:
            ReapxError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            if error.name != "pandas":
                raise
            raise ReapxError(
                "to_dataframe needs pandas, which is not installed: pip install pandas, or write a file with to_csv"
            ) from error
        return pandas.DataFrame(self._rows())

    def to_csv(self, path: str | Path) -> Path:
        """Write the table to a file of comma-separated values, which needs no pandas.

        Args:
            path: File to write; its folder is created if it does not exist.

        Returns:
            The path.

        Raises:
            InputError: ``path`` is no path.
        """
        target = path_of(path, "path")
        target.parent.mkdir(parents=True, exist_ok=True)
        rows = self._rows()
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [])
            writer.writeheader()
            writer.writerows(rows)
        return target
