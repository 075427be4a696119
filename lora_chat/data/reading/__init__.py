"""Files to raw rows: text, tables, JSON and data sets of the hub.

- arrow_values: Convert Arrow rows to the JSON that they came from
- arrow_files: Read Parquet and Arrow
- compression: Open compressed files, up to a limit
- file_types: Detect the kind of a file from its first bytes
- files: Read the rows of files
- find_files: Find the files of names, folders and globs
- foreign_files: Kinds of files that are never read
- foreign_text: Explain texts that are not rows
- folders: Choose the data files of a local folder and its splits
- globs: Expand the globs of recipes within limits
- hub_dataset: Find and download a split of a data set on the Hugging Face hub
- hub_splits: Choose the files of a hub repository that make up a split
- json_rows: Read a JSON list, objects over several lines, and a list under a key
- json_window: A window on a JSON file, from which values are decoded one by one
- missing_paths: Explain a path at which there is no file
- raw_row: A row before it is parsed as a dialogue
- size_limits: Limits on data files, and readers that enforce them
- streamed_file: Files of a hub data set that are read over the network
- table_headers: Recognise the header of a table and its separator
- tables: Read CSV and other tables
- zip_kinds: Kinds of files that are zip archives
"""
