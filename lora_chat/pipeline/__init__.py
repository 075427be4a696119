"""The order of a run: each step is one call into a package below.

- audit_data: The audit of what a run trains on and measures with
- compare: Base against adapted, shown and kept
- data_lengths: How long everything is that a run trains, measures and answers
- estimate: Recipe -> forecast
- estimate_history: What was planned against what it took, for one run and over all
- evaluate: Compare base and adapted model again, on held-out dialogues or on a file of the user
- export_adapter: A run or parcel written for other programs, each artefact opened by its real reader and compared
- fine_tune: The whole run, in order
- held_out: What can be done with a finished run, a parcel or an adapter
- inspect_data: Look at the data of a recipe as a run would see it
- load_data: The data that a plan names, found, read, encoded and split
- machine_benchmark: This machine's pace and memory habits, tried once for each shape in a process of its own, and
- machine_benchmark_worker: Run as a process of its own
- merge_adapters: Merge the adapters of one or several runs, parcels or folders into a 16-bit model
- open_adapter: RUN, PARCEL or ADAPTER -> the adapter with the base and the template that it belongs to
- open_chat: RUN, PARCEL, ADAPTER or BASE -> a chat that is ready to answer
- pack_run: A finished run -> one small file that somebody else can check
- prepare: All that a run needs before the weights
- publish: Parcels sent to the hub and fetched from it
- resume: Which run is continued, and from which of its checkpoints
- run_identity: What a run is, field by field, so that a checkpoint is not continued as another run
- run_status: How far a run has come, and what to tell someone who stopped it
- verify_parcel: A parcel checked line by line, as a table
"""
