"""What a run leaves on disk, and who may write it.

- checkpoints: Checkpoints that count only when they are whole
- lock: One process at a time in a run's folder
- metrics_log: The metrics of a run
- origin: Whose run is it
- run_folder: Names, writes and reads every file that a run leaves
"""
