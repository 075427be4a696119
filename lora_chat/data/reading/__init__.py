"""Bytes to rows: files, tables, JSON and data sets of the hub.

- file_types: What kind of file it is
- files: Files -> raw rows, each with its line
- globs: Globs of recipes, which strangers write
- hub_dataset: A split of a data set on the Hugging Face hub
- hub_splits: Which files of a repository on the hub are a split of its data set
- json_array: A JSON list element by element, each with its line
- raw_row: One row of a file, as it stands there
- size_limits: Limits on data files
- tables: CSV, TSV and Parquet -> raw rows
"""
