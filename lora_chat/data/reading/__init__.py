"""Files to raw rows: text, tables, JSON and data sets of the hub.

- arrow_values: Convert Arrow rows to the JSON that they came from
- file_types: Detect the kind of a file from its first bytes
- files: Read the rows of files
- find_files: Find the files of names, folders and globs
- folders: Choose the data files of a local folder and its splits
- globs: Expand the globs of recipes within limits
- hub_dataset: Find and download a split of a data set on the Hugging Face hub
- hub_splits: Choose the files of a hub repository that make up a split
- json_array: Read a JSON list element by element
- missing_paths: Explain a path at which there is no file
- raw_row: A row before it is parsed as a dialogue
- size_limits: Limits on data files, and readers that enforce them
- tables: Read CSV, TSV and Parquet
"""
