"""Files of a run on disk: their names, their contents, and proof of who wrote them.

- checkpoints: Checkpoints with a manifest that is written last and lists every file
- create_run: Creation of a run folder with the recipe, the plan and the versions of the libraries
- judgement_log: The judgement log of a run, appended and synced line by line
- judgement_record: Records of the judgement log: votes, retractions, and pairs with equal replies
- lock: A lock that lets one process at a time train in a run folder
- metrics_log: The metrics file of a run, one JSON object per line
- old_checkpoints: Checkpoints of finished runs that nothing needs
- origin: Signatures that show whether this user wrote a run
- run_folder: Names of all files of a run, and functions that read and write them
- validation_log: The log of validation measurements, which decides the step that is kept
"""
